//! Fetches from a hub that is fine, slow, cut off, wrong, or unwilling.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod fake;

use fake::{COMMIT, Fault, Hub as Fake, adapter};
use jiff::Timestamp;
use rollora_store::{
    Demands, FetchError, FetchReason, Fetched, Folder, Hub, Limits, Progress, Source, Store, Token, cleanup::Budget,
};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;

const SECRET: &str = "hf_secret";

struct Bed {
    fake: Fake,
    folder: TempDir,
    hub: Hub,
}

fn open(fake: &Fake, folder: &Path, token: Token) -> Hub {
    let limits = Limits { largest: 1 << 20, connect: Duration::from_secs(5), stall: Duration::from_millis(300) };
    Hub::open(Arc::new(Folder::open(folder).unwrap()), &fake.endpoint, token, limits).unwrap()
}

impl Bed {
    async fn new() -> Self {
        let (fake, folder) = (Fake::start().await, TempDir::new().unwrap());
        let hub = open(&fake, folder.path(), Token::Value(SECRET.to_owned()));
        Self { fake, folder, hub }
    }

    async fn fetch(&self) -> Result<Fetched, FetchError> {
        self.hub.fetch(&Source::parse("org/name@v1"), &|_| {}).await
    }

    async fn fails(&self, reason: FetchReason, word: &str) -> FetchError {
        let error = self.fetch().await.unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(word) && error.message.contains("org/name"), "{error}");
        assert!(!error.message.contains(SECRET), "{error}");
        error
    }

    fn downloads(&self) -> Vec<Option<String>> {
        let asked = self.fake.asked();
        asked.into_iter().filter(|asked| asked.path.ends_with("adapter_model.safetensors")).map(|it| it.range).collect()
    }
}

#[tokio::test]
async fn an_adapter_is_brought_whole_once_and_nothing_beside_it() {
    let bed = Bed::new().await;
    let told = Mutex::new(Vec::new());
    let source = Source::parse("hf://org/name@v1");
    let fetched = bed.hub.fetch(&source, &|progress: Progress| told.lock().unwrap().push(progress)).await.unwrap();
    assert_eq!(fetched.commit.as_deref(), Some(COMMIT));
    assert_eq!(fetched.path, bed.hub.place(&Source::parse("org/name@v1")));
    let mut names: Vec<_> =
        fs::read_dir(&fetched.path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".rollora.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"]);
    for item in adapter(8).into_iter().take(3) {
        assert_eq!(fs::read(fetched.path.join(&item.name)).unwrap(), item.content, "{}", item.name);
    }
    assert!(!fs::read_to_string(fetched.path.join(".rollora.json")).unwrap().contains(SECRET));
    assert!(!bed.folder.path().parent().unwrap().join("outside.json").exists());
    let told = told.into_inner().unwrap();
    assert!(told.windows(2).all(|pair| pair[0].done <= pair[1].done), "{told:?}");
    let last = told.last().unwrap();
    assert_eq!(Some(last.done), last.total);

    let asked = bed.fake.asked().len();
    bed.fetch().await.unwrap();
    assert_eq!(bed.fake.asked().len(), asked, "what is there was asked for again");
    assert!(!format!("{:?}", bed.hub).contains(SECRET));
}

#[tokio::test]
async fn a_cut_download_goes_on_from_there_even_in_another_process() {
    let bed = Bed::new().await;
    bed.fake.set(Fault::Cut(40_000));
    bed.fails(FetchReason::HubUnreachable, "goes on").await;
    bed.fake.set(Fault::None);
    let another = open(&bed.fake, bed.folder.path(), Token::None);
    let fetched = another.fetch(&Source::parse("org/name@v1"), &|_| {}).await.unwrap();
    assert_eq!(fs::read(fetched.path.join("adapter_model.safetensors")).unwrap(), adapter(8)[0].content);
    assert_eq!(bed.downloads(), [None, Some("bytes=40000-".to_owned())]);
}

#[tokio::test]
async fn a_hub_that_falls_silent_is_given_up_and_resumed() {
    let bed = Bed::new().await;
    bed.fake.set(Fault::Stall(10));
    bed.fails(FetchReason::HubUnreachable, "300ms").await;
    bed.fake.set(Fault::None);
    bed.fetch().await.unwrap();
    assert_eq!(bed.downloads(), [None, Some("bytes=10-".to_owned())]);
}

#[tokio::test]
async fn what_is_not_as_announced_is_thrown_away_and_fetched_anew() {
    for large in [true, false] {
        let bed = Bed::new().await;
        let index = usize::from(!large);
        bed.fake.change(|items| items[index].hash = Some("00".repeat(if large { 32 } else { 20 })));
        bed.fails(FetchReason::Corrupt, "not those").await;
        bed.fake.change(|items| items[index].hash = None);
        bed.fetch().await.unwrap();
    }
    let bed = Bed::new().await;
    bed.fake.change(|items| items[0].size = Some(50_000));
    bed.fails(FetchReason::Corrupt, "more bytes").await;
    bed.fake.change(|items| items[0].size = Some(200_000));
    bed.fails(FetchReason::Corrupt, "fewer bytes").await;
}

#[tokio::test]
async fn every_refusal_of_the_hub_is_told_by_its_class() {
    let bed = Bed::new().await;
    for (status, reason) in [
        (401, FetchReason::HubUnauthorized),
        (403, FetchReason::HubUnauthorized),
        (404, FetchReason::HubNotFound),
        (429, FetchReason::HubBusy),
        (500, FetchReason::HubError),
        (503, FetchReason::HubError),
    ] {
        bed.fake.set(Fault::Status(status));
        let error = bed.fails(reason, &status.to_string()).await;
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
    }
    bed.fake.set(Fault::None);
    bed.fetch().await.unwrap();
}

#[tokio::test]
async fn a_hub_that_is_away_or_a_name_that_is_none_is_said() {
    let bed = Bed::new().await;
    let folder = Arc::new(Folder::open(bed.folder.path()).unwrap());
    let nowhere = Hub::open(folder, "http://127.0.0.1:1", Token::None, Limits::default()).unwrap();
    let error = nowhere.fetch(&Source::parse("org/name"), &|_| {}).await.unwrap_err();
    assert_eq!(error.reason, FetchReason::HubUnreachable, "{error}");
    for name in ["hf://name", "hf://org/..", "hf://org/na me", "hf://a/b/c"] {
        let error = bed.hub.fetch(&Source::parse(name), &|_| {}).await.unwrap_err();
        assert_eq!(error.reason, FetchReason::HubNotFound, "{name}: {error}");
    }
    assert!(bed.fake.asked().is_empty());
    let folder = Arc::new(Folder::open(bed.folder.path()).unwrap());
    for endpoint in ["huggingface.co", "ftp://h", "http://user:pw@h"] {
        assert!(Hub::open(Arc::clone(&folder), endpoint, Token::None, Limits::default()).is_err(), "{endpoint}");
    }
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_to_nobody_that_it_points_to() {
    let bed = Bed::new().await;
    bed.fake.set(Fault::Redirect);
    bed.fetch().await.unwrap();
    let asked = bed.fake.asked();
    assert!(asked.iter().any(|asked| asked.elsewhere), "nothing was fetched elsewhere");
    for asked in asked {
        let expected = (!asked.elsewhere).then(|| format!("Bearer {SECRET}"));
        assert_eq!(asked.token, expected, "{}", asked.path);
    }
}

#[tokio::test]
async fn a_token_file_is_read_for_every_fetch() {
    let (fake, folder) = (Fake::start().await, TempDir::new().unwrap());
    let file = folder.path().join("token");
    fs::write(&file, "first\n").unwrap();
    let hub = open(&fake, &folder.path().join("adapters"), Token::File(file.clone()));
    fake.set(Fault::Status(401));
    hub.fetch(&Source::parse("org/name"), &|_| {}).await.unwrap_err();
    fs::write(&file, "second\n").unwrap();
    hub.fetch(&Source::parse("org/name"), &|_| {}).await.unwrap_err();
    let tokens: Vec<_> = fake.asked().into_iter().filter_map(|asked| asked.token).collect();
    assert_eq!(tokens, ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn what_is_no_adapter_for_this_server_is_refused_before_its_weights_are_paid_for() {
    let config = |text: &str| {
        let text = text.as_bytes().to_vec();
        move |items: &mut Vec<fake::Item>| items[1].content = text
    };
    for (reason, word, text) in [
        (FetchReason::BadAdapter, "PREFIX_TUNING", r#"{"peft_type":"PREFIX_TUNING","r":8}"#),
        (FetchReason::BadAdapter, "peft_type", r#"{"r":8}"#),
        (FetchReason::BadAdapter, "rank", r#"{"peft_type":"LORA"}"#),
        (FetchReason::BadAdapter, "cannot be read", "{"),
        (FetchReason::RankTooHigh, "rank 32", r#"{"peft_type":"LORA","r":32}"#),
        (FetchReason::RankTooHigh, "rank 64", r#"{"peft_type":"LORA","r":8,"rank_pattern":{"q":64}}"#),
    ] {
        let bed = Bed::new().await;
        bed.hub.demand(Demands { max_rank: Some(16), base_models: vec!["org/base".to_owned()] });
        bed.fake.change(config(text));
        bed.fails(reason, word).await;
        assert!(bed.downloads().is_empty(), "{text}");
    }
    let bed = Bed::new().await;
    bed.fake.change(|items| items[0].name = "adapter_model.bin".to_owned());
    bed.fails(FetchReason::BadAdapter, "pickle").await;
    bed.fake.change(|items| items.retain(|item| item.name != "adapter_config.json"));
    bed.fails(FetchReason::BadAdapter, "adapter_config.json").await;
    bed.fake.change(|items| {
        *items = adapter(8);
        items[0].size = Some(2 << 20);
    });
    bed.fails(FetchReason::TooLarge, "--adapter-max-size").await;
    assert!(bed.downloads().is_empty());
}

#[tokio::test]
async fn tensors_that_are_not_all_there_are_refused() {
    let mut outside = fake::tensors(100);
    outside.truncate(60);
    let mut surplus = fake::tensors(100);
    surplus.push(0);
    let mut no_json = fake::tensors(100);
    no_json[8] = b'x';
    for (content, word) in [
        (outside, "broken"),
        (surplus, "no tensor"),
        (no_json, "no JSON"),
        (u64::MAX.to_le_bytes().to_vec(), "longer than the file"),
        (vec![1, 2], "shorter"),
    ] {
        let bed = Bed::new().await;
        bed.fake.change(|items| items[0].content = content);
        bed.fails(FetchReason::BadAdapter, word).await;
        // What the hub has is not paid for twice.
        bed.fails(FetchReason::BadAdapter, word).await;
        assert_eq!(bed.downloads().len(), 1);
    }
}

#[tokio::test]
async fn two_fetches_of_one_adapter_bring_it_once() {
    let bed = Bed::new().await;
    let another = open(&bed.fake, bed.folder.path(), Token::None);
    let source = Source::parse("org/name@v1");
    let (one, other) = tokio::join!(bed.fetch(), another.fetch(&source, &|_| {}));
    assert_eq!(one.unwrap(), other.unwrap());
    assert_eq!(bed.downloads().len(), 1);
}

#[tokio::test]
async fn a_folder_that_cannot_be_one_is_said() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Folder::open(&file).unwrap_err().to_string();
    assert!(error.contains("writable volume"), "{error}");
}

#[tokio::test]
async fn a_sweep_removes_what_nobody_wants_and_nothing_that_somebody_else_could_use() {
    let bed = Bed::new().await;
    let place = bed.fetch().await.unwrap().path;
    let budget = Budget { keep: Duration::from_hours(24), largest: None };
    let later = |hours| {
        Timestamp::try_from(fs::metadata(place.join(".rollora.json")).unwrap().modified().unwrap()).unwrap()
            + Duration::from_hours(hours)
    };
    let two_days = later(48);
    let sweep = |folder: &Folder, protected: &BTreeSet<_>, now| folder.sweep(protected, &budget, now).unwrap();
    let other = Folder::open(bed.folder.path()).unwrap();
    assert!(sweep(&other, &BTreeSet::new(), two_days).is_empty(), "the hub of the bed uses it too");
    drop(bed.hub);
    let protected = BTreeSet::from([place.clone()]);
    assert!(sweep(&other, &protected, two_days).is_empty());
    // It was wanted two days later.
    assert!(sweep(&other, &BTreeSet::new(), two_days + Duration::from_hours(23)).is_empty());
    assert_eq!(sweep(&other, &BTreeSet::new(), two_days + Duration::from_hours(25)), std::slice::from_ref(&place));
    assert!(!place.exists());
}

#[tokio::test]
async fn a_sweep_that_finds_somebody_else_leaves_its_own_claim_in_force() {
    let bed = Bed::new().await;
    let place = bed.fetch().await.unwrap().path;
    let wanted = fs::metadata(place.join(".rollora.json")).unwrap().modified().unwrap();
    let later = Timestamp::try_from(wanted).unwrap() + Duration::from_hours(48);
    let budget = Budget { keep: Duration::from_hours(24), largest: None };
    let (one, other) = (Folder::open(bed.folder.path()).unwrap(), Folder::open(bed.folder.path()).unwrap());
    drop(bed.hub);
    for folder in [&one, &other, &one, &other] {
        assert!(folder.sweep(&BTreeSet::new(), &budget, later).unwrap().is_empty());
    }
    assert!(place.exists());
}

#[tokio::test]
async fn an_old_adapter_that_is_asked_for_again_counts_as_wanted() {
    let bed = Bed::new().await;
    let place = bed.fetch().await.unwrap().path;
    let manifest = fs::File::options().append(true).open(place.join(".rollora.json")).unwrap();
    let fetched = manifest.metadata().unwrap().modified().unwrap();
    manifest.set_modified(fetched - Duration::from_hours(48)).unwrap();
    bed.fetch().await.unwrap();
    assert!(manifest.metadata().unwrap().modified().unwrap() >= fetched);
}
