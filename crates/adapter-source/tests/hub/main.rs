//! Fetches from a fake hub that works, stalls, breaks the connection, sends wrong data, or refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod fake;

use fake::{COMMIT, FakeHub, HubFault, adapter_files};
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
    fake: FakeHub,
    folder: TempDir,
    hub: Hub,
}

fn open_hub(fake: &FakeHub, folder: &Path, token: HubToken) -> Hub {
    let limits = HubLimits {
        max_bytes: 1 << 20,
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_millis(300),
    };
    Hub::open(Arc::new(CacheDir::open(folder).unwrap()), &fake.endpoint, token, limits).unwrap()
}

impl Fixture {
    async fn new() -> Self {
        let (fake, folder) = (FakeHub::start().await, TempDir::new().unwrap());
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
        let requests = self.fake.requests();
        requests
            .into_iter()
            .filter(|request| request.path.ends_with("adapter_model.safetensors"))
            .map(|it| it.range)
            .collect()
    }
}

#[tokio::test]
async fn adapter_is_downloaded_once_without_other_files() {
    let fixture = Fixture::new().await;
    let updates = Mutex::new(Vec::new());
    let source = SourceRef::parse("hf://org/name@v1");
    let fetched =
        fixture.hub.fetch(&source, &|progress: FetchProgress| updates.lock().unwrap().push(progress)).await.unwrap();
    assert_eq!(fetched.commit.as_deref(), Some(COMMIT));
    assert_eq!(fetched.path, fixture.hub.local_path(&SourceRef::parse("org/name@v1")));
    let mut names: Vec<_> =
        fs::read_dir(&fetched.path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".rollora.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"]);
    for item in adapter_files(8).into_iter().take(3) {
        assert_eq!(fs::read(fetched.path.join(&item.name)).unwrap(), item.content, "{}", item.name);
    }
    assert!(!fs::read_to_string(fetched.path.join(".rollora.json")).unwrap().contains(SECRET));
    assert!(!fixture.folder.path().parent().unwrap().join("outside.json").exists());
    let updates = updates.into_inner().unwrap();
    assert!(updates.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes), "{updates:?}");
    let last = updates.last().unwrap();
    assert_eq!(Some(last.bytes), last.total_bytes);

    let requests = fixture.fake.requests().len();
    fixture.fetch().await.unwrap();
    assert_eq!(fixture.fake.requests().len(), requests, "a cached adapter was requested again");
    assert!(!format!("{:?}", fixture.hub).contains(SECRET));
}

#[tokio::test]
async fn broken_download_is_resumed_also_by_another_process() {
    let fixture = Fixture::new().await;
    fixture.fake.set_fault(HubFault::Cut(40_000));
    fixture.fetch_error(FetchReason::HubUnreachable, "resumes").await;
    fixture.fake.set_fault(HubFault::None);
    let another = open_hub(&fixture.fake, fixture.folder.path(), HubToken::None);
    let fetched = another.fetch(&SourceRef::parse("org/name@v1"), &|_| {}).await.unwrap();
    assert_eq!(fs::read(fetched.path.join("adapter_model.safetensors")).unwrap(), adapter_files(8)[0].content);
    assert_eq!(fixture.download_ranges(), [None, Some("bytes=40000-".to_owned())]);
}

#[tokio::test]
async fn stalled_download_times_out_and_is_resumed() {
    let fixture = Fixture::new().await;
    fixture.fake.set_fault(HubFault::Stall(10));
    fixture.fetch_error(FetchReason::HubUnreachable, "300ms").await;
    fixture.fake.set_fault(HubFault::None);
    fixture.fetch().await.unwrap();
    assert_eq!(fixture.download_ranges(), [None, Some("bytes=10-".to_owned())]);
}

#[tokio::test]
async fn files_that_differ_from_the_announced_are_refetched() {
    for large in [true, false] {
        let fixture = Fixture::new().await;
        let index = usize::from(!large);
        fixture.fake.edit_files(|items| items[index].hash = Some("00".repeat(if large { 32 } else { 20 })));
        fixture.fetch_error(FetchReason::Corrupt, "hash differs").await;
        fixture.fake.edit_files(|items| items[index].hash = None);
        fixture.fetch().await.unwrap();
    }
    let fixture = Fixture::new().await;
    fixture.fake.edit_files(|items| items[0].size = Some(50_000));
    fixture.fetch_error(FetchReason::Corrupt, "more bytes").await;
    fixture.fake.edit_files(|items| items[0].size = Some(200_000));
    fixture.fetch_error(FetchReason::Corrupt, "fewer bytes").await;
}

#[tokio::test]
async fn each_hub_status_maps_to_its_reason() {
    let fixture = Fixture::new().await;
    for (status, reason) in [
        (401, FetchReason::HubUnauthorized),
        (403, FetchReason::HubUnauthorized),
        (404, FetchReason::HubNotFound),
        (429, FetchReason::HubRateLimited),
        (500, FetchReason::HubError),
        (503, FetchReason::HubError),
    ] {
        fixture.fake.set_fault(HubFault::Status(status));
        let error = fixture.fetch_error(reason, &status.to_string()).await;
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
    }
    fixture.fake.set_fault(HubFault::None);
    fixture.fetch().await.unwrap();
}

#[tokio::test]
async fn unreachable_hubs_and_invalid_names_are_rejected() {
    let fixture = Fixture::new().await;
    let folder = Arc::new(CacheDir::open(fixture.folder.path()).unwrap());
    let nowhere = Hub::open(folder, "http://127.0.0.1:1", HubToken::None, HubLimits::default()).unwrap();
    let error = nowhere.fetch(&SourceRef::parse("org/name"), &|_| {}).await.unwrap_err();
    assert_eq!(error.reason, FetchReason::HubUnreachable, "{error}");
    for name in ["hf://name", "hf://org/..", "hf://org/na me", "hf://a/b/c"] {
        let error = fixture.hub.fetch(&SourceRef::parse(name), &|_| {}).await.unwrap_err();
        assert_eq!(error.reason, FetchReason::HubNotFound, "{name}: {error}");
    }
    assert!(fixture.fake.requests().is_empty());
    let folder = Arc::new(CacheDir::open(fixture.folder.path()).unwrap());
    for endpoint in ["huggingface.co", "ftp://h", "http://user:pw@h"] {
        assert!(Hub::open(Arc::clone(&folder), endpoint, HubToken::None, HubLimits::default()).is_err(), "{endpoint}");
    }
}

#[tokio::test]
async fn token_is_not_sent_to_redirect_targets() {
    let fixture = Fixture::new().await;
    fixture.fake.set_fault(HubFault::Redirect);
    fixture.fetch().await.unwrap();
    let requests = fixture.fake.requests();
    assert!(requests.iter().any(|request| request.on_redirect_target), "no request reached the redirect target");
    for request in requests {
        let expected = (!request.on_redirect_target).then(|| format!("Bearer {SECRET}"));
        assert_eq!(request.token, expected, "{}", request.path);
    }
}

#[tokio::test]
async fn token_file_is_read_for_every_fetch() {
    let (fake, folder) = (FakeHub::start().await, TempDir::new().unwrap());
    let file = folder.path().join("token");
    fs::write(&file, "first\n").unwrap();
    let hub = open_hub(&fake, &folder.path().join("adapters"), HubToken::File(file.clone()));
    fake.set_fault(HubFault::Status(401));
    hub.fetch(&SourceRef::parse("org/name"), &|_| {}).await.unwrap_err();
    fs::write(&file, "second\n").unwrap();
    hub.fetch(&SourceRef::parse("org/name"), &|_| {}).await.unwrap_err();
    let tokens: Vec<_> = fake.requests().into_iter().filter_map(|request| request.token).collect();
    assert_eq!(tokens, ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn unsuitable_adapters_fail_before_weights_are_downloaded() {
    let config = |text: &str| {
        let text = text.as_bytes().to_vec();
        move |items: &mut Vec<fake::RepositoryFile>| items[1].content = text
    };
    for (reason, word, text) in [
        (FetchReason::BadAdapter, "PREFIX_TUNING", r#"{"peft_type":"PREFIX_TUNING","r":8}"#),
        (FetchReason::BadAdapter, "peft_type", r#"{"r":8}"#),
        (FetchReason::BadAdapter, "rank", r#"{"peft_type":"LORA"}"#),
        (FetchReason::BadAdapter, "cannot be parsed", "{"),
        (FetchReason::RankTooHigh, "rank 32", r#"{"peft_type":"LORA","r":32}"#),
        (FetchReason::RankTooHigh, "rank 64", r#"{"peft_type":"LORA","r":8,"rank_pattern":{"q":64}}"#),
    ] {
        let fixture = Fixture::new().await;
        fixture.hub.set_constraints(ServerConstraints { max_rank: Some(16), base_models: vec!["org/base".to_owned()] });
        fixture.fake.edit_files(config(text));
        fixture.fetch_error(reason, word).await;
        assert!(fixture.download_ranges().is_empty(), "{text}");
    }
    let fixture = Fixture::new().await;
    fixture.fake.edit_files(|items| items[0].name = "adapter_model.bin".to_owned());
    fixture.fetch_error(FetchReason::BadAdapter, "pickle").await;
    fixture.fake.edit_files(|items| items.retain(|item| item.name != "adapter_config.json"));
    fixture.fetch_error(FetchReason::BadAdapter, "adapter_config.json").await;
    fixture.fake.edit_files(|items| {
        *items = adapter_files(8);
        items[0].size = Some(2 << 20);
    });
    fixture.fetch_error(FetchReason::TooLarge, "--adapter-max-size").await;
    assert!(fixture.download_ranges().is_empty());
}

#[tokio::test]
async fn incomplete_tensors_are_rejected() {
    let mut truncated = fake::tensors(100);
    truncated.truncate(60);
    let mut surplus = fake::tensors(100);
    surplus.push(0);
    let mut invalid_header = fake::tensors(100);
    invalid_header[8] = b'x';
    for (content, word) in [
        (truncated, "broken"),
        (surplus, "no tensor"),
        (invalid_header, "not a JSON"),
        (u64::MAX.to_le_bytes().to_vec(), "longer than the file"),
        (vec![1, 2], "shorter"),
    ] {
        let fixture = Fixture::new().await;
        fixture.fake.edit_files(|items| items[0].content = content);
        fixture.fetch_error(FetchReason::BadAdapter, word).await;
        // The same file is not downloaded twice.
        fixture.fetch_error(FetchReason::BadAdapter, word).await;
        assert_eq!(fixture.download_ranges().len(), 1);
    }
}

#[tokio::test]
async fn concurrent_fetches_download_an_adapter_once() {
    let fixture = Fixture::new().await;
    let another = open_hub(&fixture.fake, fixture.folder.path(), HubToken::None);
    let source = SourceRef::parse("org/name@v1");
    let (one, other) = tokio::join!(fixture.fetch(), another.fetch(&source, &|_| {}));
    assert_eq!(one.unwrap(), other.unwrap());
    assert_eq!(fixture.download_ranges().len(), 1);
}

#[tokio::test]
async fn cache_dir_that_is_a_file_is_rejected() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = CacheDir::open(&file).unwrap_err().to_string();
    assert!(error.contains("writable volume"), "{error}");
}

#[tokio::test]
async fn eviction_removes_only_unused_adapters_when_alone() {
    let fixture = Fixture::new().await;
    let path = fixture.fetch().await.unwrap().path;
    let policy = EvictionPolicy { retention: Duration::from_hours(24), max_bytes: None };
    let later = |hours| {
        Timestamp::try_from(fs::metadata(path.join(".rollora.json")).unwrap().modified().unwrap()).unwrap()
            + Duration::from_hours(hours)
    };
    let two_days = later(48);
    let evict = |folder: &CacheDir, protected: &BTreeSet<_>, now| folder.evict(protected, &policy, now).unwrap();
    let other = CacheDir::open(fixture.folder.path()).unwrap();
    assert!(
        evict(&other, &BTreeSet::new(), two_days).is_empty(),
        "evicted although the hub of the fixture uses the directory"
    );
    drop(fixture.hub);
    let protected = BTreeSet::from([path.clone()]);
    assert!(evict(&other, &protected, two_days).is_empty());
    // The previous call marked it as used two days later.
    assert!(evict(&other, &BTreeSet::new(), two_days + Duration::from_hours(23)).is_empty());
    assert_eq!(evict(&other, &BTreeSet::new(), two_days + Duration::from_hours(25)), std::slice::from_ref(&path));
    assert!(!path.exists());
}

#[tokio::test]
async fn failed_eviction_keeps_its_own_shared_lock() {
    let fixture = Fixture::new().await;
    let path = fixture.fetch().await.unwrap().path;
    let last_used = fs::metadata(path.join(".rollora.json")).unwrap().modified().unwrap();
    let later = Timestamp::try_from(last_used).unwrap() + Duration::from_hours(48);
    let policy = EvictionPolicy { retention: Duration::from_hours(24), max_bytes: None };
    let (one, other) = (CacheDir::open(fixture.folder.path()).unwrap(), CacheDir::open(fixture.folder.path()).unwrap());
    drop(fixture.hub);
    for folder in [&one, &other, &one, &other] {
        assert!(folder.evict(&BTreeSet::new(), &policy, later).unwrap().is_empty());
    }
    assert!(path.exists());
}

#[tokio::test]
async fn fetch_of_a_cached_adapter_counts_as_use() {
    let fixture = Fixture::new().await;
    let path = fixture.fetch().await.unwrap().path;
    let manifest = fs::File::options().append(true).open(path.join(".rollora.json")).unwrap();
    let fetched = manifest.metadata().unwrap().modified().unwrap();
    manifest.set_modified(fetched - Duration::from_hours(48)).unwrap();
    fixture.fetch().await.unwrap();
    assert!(manifest.metadata().unwrap().modified().unwrap() >= fetched);
}
