//! Fetches from a hub that is fine, slow, cut off, wrong, or unwilling.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod fake;

use fake::{COMMIT, FakeHub as Fake, HubFault, adapter_files};
use jiff::Timestamp;
use rollora_adapter_source::{
    AdapterSource, CacheDir, FetchError, FetchProgress, FetchReason, FetchedAdapter, Hub, HubLimits, HubToken,
    ServerConstraints, SourceRef, eviction::EvictionPolicy,
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

struct Fixture {
    fake: Fake,
    folder: TempDir,
    hub: Hub,
}

fn open_hub(fake: &Fake, folder: &Path, token: HubToken) -> Hub {
    let limits = HubLimits {
        max_bytes: 1 << 20,
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_millis(300),
    };
    Hub::open(Arc::new(CacheDir::open(folder).unwrap()), &fake.endpoint, token, limits).unwrap()
}

impl Fixture {
    async fn new() -> Self {
        let (fake, folder) = (Fake::start().await, TempDir::new().unwrap());
        let hub = open_hub(&fake, folder.path(), HubToken::Value(SECRET.to_owned()));
        Self { fake, folder, hub }
    }

    async fn fetch(&self) -> Result<FetchedAdapter, FetchError> {
        self.hub.fetch(&SourceRef::parse("org/name@v1"), &|_| {}).await
    }

    async fn fetch_error(&self, reason: FetchReason, word: &str) -> FetchError {
        let error = self.fetch().await.unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(word) && error.message.contains("org/name"), "{error}");
        assert!(!error.message.contains(SECRET), "{error}");
        error
    }

    fn download_ranges(&self) -> Vec<Option<String>> {
        let asked = self.fake.requests();
        asked.into_iter().filter(|asked| asked.path.ends_with("adapter_model.safetensors")).map(|it| it.range).collect()
    }
}

#[tokio::test]
async fn an_adapter_is_brought_whole_once_and_nothing_beside_it() {
    let bed = Fixture::new().await;
    let told = Mutex::new(Vec::new());
    let source = SourceRef::parse("hf://org/name@v1");
    let fetched = bed.hub.fetch(&source, &|progress: FetchProgress| told.lock().unwrap().push(progress)).await.unwrap();
    assert_eq!(fetched.commit.as_deref(), Some(COMMIT));
    assert_eq!(fetched.path, bed.hub.local_path(&SourceRef::parse("org/name@v1")));
    let mut names: Vec<_> =
        fs::read_dir(&fetched.path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".rollora.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"]);
    for item in adapter_files(8).into_iter().take(3) {
        assert_eq!(fs::read(fetched.path.join(&item.name)).unwrap(), item.content, "{}", item.name);
    }
    assert!(!fs::read_to_string(fetched.path.join(".rollora.json")).unwrap().contains(SECRET));
    assert!(!bed.folder.path().parent().unwrap().join("outside.json").exists());
    let told = told.into_inner().unwrap();
    assert!(told.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes), "{told:?}");
    let last = told.last().unwrap();
    assert_eq!(Some(last.bytes), last.total_bytes);

    let asked = bed.fake.requests().len();
    bed.fetch().await.unwrap();
    assert_eq!(bed.fake.requests().len(), asked, "what is there was asked for again");
    assert!(!format!("{:?}", bed.hub).contains(SECRET));
}

#[tokio::test]
async fn a_cut_download_goes_on_from_there_even_in_another_process() {
    let bed = Fixture::new().await;
    bed.fake.set_fault(HubFault::Cut(40_000));
    bed.fetch_error(FetchReason::HubUnreachable, "goes on").await;
    bed.fake.set_fault(HubFault::None);
    let another = open_hub(&bed.fake, bed.folder.path(), HubToken::None);
    let fetched = another.fetch(&SourceRef::parse("org/name@v1"), &|_| {}).await.unwrap();
    assert_eq!(fs::read(fetched.path.join("adapter_model.safetensors")).unwrap(), adapter_files(8)[0].content);
    assert_eq!(bed.download_ranges(), [None, Some("bytes=40000-".to_owned())]);
}

#[tokio::test]
async fn a_hub_that_falls_silent_is_given_up_and_resumed() {
    let bed = Fixture::new().await;
    bed.fake.set_fault(HubFault::Stall(10));
    bed.fetch_error(FetchReason::HubUnreachable, "300ms").await;
    bed.fake.set_fault(HubFault::None);
    bed.fetch().await.unwrap();
    assert_eq!(bed.download_ranges(), [None, Some("bytes=10-".to_owned())]);
}

#[tokio::test]
async fn what_is_not_as_announced_is_thrown_away_and_fetched_anew() {
    for large in [true, false] {
        let bed = Fixture::new().await;
        let index = usize::from(!large);
        bed.fake.edit_files(|items| items[index].hash = Some("00".repeat(if large { 32 } else { 20 })));
        bed.fetch_error(FetchReason::Corrupt, "not those").await;
        bed.fake.edit_files(|items| items[index].hash = None);
        bed.fetch().await.unwrap();
    }
    let bed = Fixture::new().await;
    bed.fake.edit_files(|items| items[0].size = Some(50_000));
    bed.fetch_error(FetchReason::Corrupt, "more bytes").await;
    bed.fake.edit_files(|items| items[0].size = Some(200_000));
    bed.fetch_error(FetchReason::Corrupt, "fewer bytes").await;
}

#[tokio::test]
async fn every_refusal_of_the_hub_is_told_by_its_class() {
    let bed = Fixture::new().await;
    for (status, reason) in [
        (401, FetchReason::HubUnauthorized),
        (403, FetchReason::HubUnauthorized),
        (404, FetchReason::HubNotFound),
        (429, FetchReason::HubRateLimited),
        (500, FetchReason::HubError),
        (503, FetchReason::HubError),
    ] {
        bed.fake.set_fault(HubFault::Status(status));
        let error = bed.fetch_error(reason, &status.to_string()).await;
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
    }
    bed.fake.set_fault(HubFault::None);
    bed.fetch().await.unwrap();
}

#[tokio::test]
async fn a_hub_that_is_away_or_a_name_that_is_none_is_said() {
    let bed = Fixture::new().await;
    let folder = Arc::new(CacheDir::open(bed.folder.path()).unwrap());
    let nowhere = Hub::open(folder, "http://127.0.0.1:1", HubToken::None, HubLimits::default()).unwrap();
    let error = nowhere.fetch(&SourceRef::parse("org/name"), &|_| {}).await.unwrap_err();
    assert_eq!(error.reason, FetchReason::HubUnreachable, "{error}");
    for name in ["hf://name", "hf://org/..", "hf://org/na me", "hf://a/b/c"] {
        let error = bed.hub.fetch(&SourceRef::parse(name), &|_| {}).await.unwrap_err();
        assert_eq!(error.reason, FetchReason::HubNotFound, "{name}: {error}");
    }
    assert!(bed.fake.requests().is_empty());
    let folder = Arc::new(CacheDir::open(bed.folder.path()).unwrap());
    for endpoint in ["huggingface.co", "ftp://h", "http://user:pw@h"] {
        assert!(Hub::open(Arc::clone(&folder), endpoint, HubToken::None, HubLimits::default()).is_err(), "{endpoint}");
    }
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_to_nobody_that_it_points_to() {
    let bed = Fixture::new().await;
    bed.fake.set_fault(HubFault::Redirect);
    bed.fetch().await.unwrap();
    let asked = bed.fake.requests();
    assert!(asked.iter().any(|asked| asked.on_redirect_target), "nothing was fetched elsewhere");
    for asked in asked {
        let expected = (!asked.on_redirect_target).then(|| format!("Bearer {SECRET}"));
        assert_eq!(asked.token, expected, "{}", asked.path);
    }
}

#[tokio::test]
async fn a_token_file_is_read_for_every_fetch() {
    let (fake, folder) = (Fake::start().await, TempDir::new().unwrap());
    let file = folder.path().join("token");
    fs::write(&file, "first\n").unwrap();
    let hub = open_hub(&fake, &folder.path().join("adapters"), HubToken::File(file.clone()));
    fake.set_fault(HubFault::Status(401));
    hub.fetch(&SourceRef::parse("org/name"), &|_| {}).await.unwrap_err();
    fs::write(&file, "second\n").unwrap();
    hub.fetch(&SourceRef::parse("org/name"), &|_| {}).await.unwrap_err();
    let tokens: Vec<_> = fake.requests().into_iter().filter_map(|asked| asked.token).collect();
    assert_eq!(tokens, ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn what_is_no_adapter_for_this_server_is_refused_before_its_weights_are_paid_for() {
    let config = |text: &str| {
        let text = text.as_bytes().to_vec();
        move |items: &mut Vec<fake::RepositoryFile>| items[1].content = text
    };
    for (reason, word, text) in [
        (FetchReason::BadAdapter, "PREFIX_TUNING", r#"{"peft_type":"PREFIX_TUNING","r":8}"#),
        (FetchReason::BadAdapter, "peft_type", r#"{"r":8}"#),
        (FetchReason::BadAdapter, "rank", r#"{"peft_type":"LORA"}"#),
        (FetchReason::BadAdapter, "cannot be read", "{"),
        (FetchReason::RankTooHigh, "rank 32", r#"{"peft_type":"LORA","r":32}"#),
        (FetchReason::RankTooHigh, "rank 64", r#"{"peft_type":"LORA","r":8,"rank_pattern":{"q":64}}"#),
    ] {
        let bed = Fixture::new().await;
        bed.hub.set_constraints(ServerConstraints { max_rank: Some(16), base_models: vec!["org/base".to_owned()] });
        bed.fake.edit_files(config(text));
        bed.fetch_error(reason, word).await;
        assert!(bed.download_ranges().is_empty(), "{text}");
    }
    let bed = Fixture::new().await;
    bed.fake.edit_files(|items| items[0].name = "adapter_model.bin".to_owned());
    bed.fetch_error(FetchReason::BadAdapter, "pickle").await;
    bed.fake.edit_files(|items| items.retain(|item| item.name != "adapter_config.json"));
    bed.fetch_error(FetchReason::BadAdapter, "adapter_config.json").await;
    bed.fake.edit_files(|items| {
        *items = adapter_files(8);
        items[0].size = Some(2 << 20);
    });
    bed.fetch_error(FetchReason::TooLarge, "--adapter-max-size").await;
    assert!(bed.download_ranges().is_empty());
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
        let bed = Fixture::new().await;
        bed.fake.edit_files(|items| items[0].content = content);
        bed.fetch_error(FetchReason::BadAdapter, word).await;
        // What the hub has is not paid for twice.
        bed.fetch_error(FetchReason::BadAdapter, word).await;
        assert_eq!(bed.download_ranges().len(), 1);
    }
}

#[tokio::test]
async fn two_fetches_of_one_adapter_bring_it_once() {
    let bed = Fixture::new().await;
    let another = open_hub(&bed.fake, bed.folder.path(), HubToken::None);
    let source = SourceRef::parse("org/name@v1");
    let (one, other) = tokio::join!(bed.fetch(), another.fetch(&source, &|_| {}));
    assert_eq!(one.unwrap(), other.unwrap());
    assert_eq!(bed.download_ranges().len(), 1);
}

#[tokio::test]
async fn a_folder_that_cannot_be_one_is_said() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = CacheDir::open(&file).unwrap_err().to_string();
    assert!(error.contains("writable volume"), "{error}");
}

#[tokio::test]
async fn a_sweep_removes_what_nobody_wants_and_nothing_that_somebody_else_could_use() {
    let bed = Fixture::new().await;
    let place = bed.fetch().await.unwrap().path;
    let budget = EvictionPolicy { retention: Duration::from_hours(24), max_bytes: None };
    let later = |hours| {
        Timestamp::try_from(fs::metadata(place.join(".rollora.json")).unwrap().modified().unwrap()).unwrap()
            + Duration::from_hours(hours)
    };
    let two_days = later(48);
    let sweep = |folder: &CacheDir, protected: &BTreeSet<_>, now| folder.evict(protected, &budget, now).unwrap();
    let other = CacheDir::open(bed.folder.path()).unwrap();
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
    let bed = Fixture::new().await;
    let place = bed.fetch().await.unwrap().path;
    let wanted = fs::metadata(place.join(".rollora.json")).unwrap().modified().unwrap();
    let later = Timestamp::try_from(wanted).unwrap() + Duration::from_hours(48);
    let budget = EvictionPolicy { retention: Duration::from_hours(24), max_bytes: None };
    let (one, other) = (CacheDir::open(bed.folder.path()).unwrap(), CacheDir::open(bed.folder.path()).unwrap());
    drop(bed.hub);
    for folder in [&one, &other, &one, &other] {
        assert!(folder.evict(&BTreeSet::new(), &budget, later).unwrap().is_empty());
    }
    assert!(place.exists());
}

#[tokio::test]
async fn an_old_adapter_that_is_asked_for_again_counts_as_wanted() {
    let bed = Fixture::new().await;
    let place = bed.fetch().await.unwrap().path;
    let manifest = fs::File::options().append(true).open(place.join(".rollora.json")).unwrap();
    let fetched = manifest.metadata().unwrap().modified().unwrap();
    manifest.set_modified(fetched - Duration::from_hours(48)).unwrap();
    bed.fetch().await.unwrap();
    assert!(manifest.metadata().unwrap().modified().unwrap() >= fetched);
}
