//! Tests of the main loop against a fake vLLM on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![allow(clippy::disallowed_methods, reason = "the fake reports the time of uses, as vLLM does, and tests sleep")]

#[allow(dead_code, reason = "shared with the tests of the program")]
mod fake;
mod fetch;
mod many;
mod unload;

use fake::{FakeVllm, FakeVllmConfig};
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile, ContentHash, DesiredAdapters},
    names::AdapterId,
    operator_directives::{OperatorDirectives, Pilot},
    sidecar_status::{AdapterState, SidecarStatus},
};
use rollora_sidecar::{PollIntervals, Sidecar, SidecarConfig, adapters_watch::AdaptersWatch, backoff::Backoff};
use rollora_vllm::{ApiKey, Endpoint};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const POD_NAME: &str = "pod-1";

fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

fn desired(exist: &[&str], not_exist: &[&str]) -> DesiredAdapters {
    let entry = |name: &&str| AdapterEntry {
        id: id(name),
        source: format!("/adapters/{name}"),
        base_model: None,
        required: false,
    };
    let file = AdaptersFile {
        ensure_exist: exist.iter().map(entry).collect(),
        ensure_not_exist: not_exist.iter().map(entry).collect(),
        ..AdaptersFile::default()
    };
    DesiredAdapters { file, directives: None, hash: ContentHash(format!("{exist:?}{not_exist:?}")) }
}

fn pilot_directives(name: &str) -> OperatorDirectives {
    let pilots = vec![Pilot { id: id(name), pod: POD_NAME.to_owned() }];
    OperatorDirectives { managed: vec![name.to_owned()], pilots, ..OperatorDirectives::default() }
}

/// Returns a configuration with all delays about ten times shorter than by default.
fn fast_config(fake: &FakeVllm) -> SidecarConfig {
    let mut config = SidecarConfig::new(POD_NAME, Endpoint::parse(&fake.url()).unwrap());
    config.policy.unload_grace = Duration::from_millis(300);
    config.policy.backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_millis(400) };
    config.policy.intervals = PollIntervals {
        health: Duration::from_millis(25),
        models: Duration::from_millis(200),
        metrics_retiring: Duration::from_millis(50),
        metrics: Duration::from_millis(500),
    };
    config
}

/// A running sidecar with its channels.
struct LoopTestbed {
    desired: watch::Sender<Option<Arc<DesiredAdapters>>>,
    status: watch::Receiver<Arc<SidecarStatus>>,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl LoopTestbed {
    fn start(config: SidecarConfig, first: DesiredAdapters) -> Self {
        Self::start_with(config, first, |sidecar, _| sidecar)
    }

    fn start_with(
        config: SidecarConfig,
        first: DesiredAdapters,
        customize: impl FnOnce(Sidecar, watch::Sender<Option<Arc<DesiredAdapters>>>) -> Sidecar,
    ) -> Self {
        let (desired, desired_rx) = watch::channel(Some(Arc::new(first)));
        let (sidecar, status) = Sidecar::new(config, desired_rx).unwrap();
        let sidecar = customize(sidecar, desired.clone());
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        running.spawn(sidecar.run(stop.clone()));
        Self { desired, status, stop, running }
    }

    fn set_desired(&self, desired: DesiredAdapters) {
        self.desired.send_replace(Some(Arc::new(desired)));
    }

    /// Waits for a status that fulfills `reached`.
    async fn wait_for(&mut self, what: &str, reached: impl Fn(&SidecarStatus) -> bool) -> Arc<SidecarStatus> {
        let status = timeout(Duration::from_secs(30), self.status.wait_for(|status| reached(status))).await;
        let status = status.map(|status| status.unwrap().clone());
        status.unwrap_or_else(|_| panic!("{what}: {:#?}", self.status.borrow()))
    }

    async fn wait_for_state(&mut self, name: &str, state: AdapterState) -> Arc<SidecarStatus> {
        self.wait_for(&format!("{name} {state:?}"), |status| adapter_state(status, name) == Some(state)).await
    }

    async fn wait_until_ready(&mut self) -> Arc<SidecarStatus> {
        self.wait_for("ready", |status| status.readiness.ready).await
    }
}

fn adapter_state(status: &SidecarStatus, name: &str) -> Option<AdapterState> {
    status.adapter(&id(name)).map(|adapter| adapter.state)
}

#[tokio::test]
async fn listed_adapters_are_loaded_verified_and_reported() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &["c", "base"]));
    let status = testbed.wait_until_ready().await;
    assert!(status.is_verified(&id("a")) && status.is_verified(&id("b")));
    assert_eq!(adapter_state(&status, "c"), Some(AdapterState::Gone));
    assert_eq!(status.base_models, ["base"]);
    assert_eq!(status.config.hash, Some(desired(&["a", "b"], &["c", "base"]).hash));
    let mut requests = fake.requests();
    requests.sort();
    assert_eq!(requests, ["load a /adapters/a", "load b /adapters/b", "use a", "use b"]);
}

#[tokio::test]
async fn server_restart_makes_unready_until_adapters_are_back() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &[]));
    let before = testbed.wait_until_ready().await;
    fake.kill();
    testbed.wait_for("server down", |status| status.server.is_none() && !status.readiness.ready).await;
    fake.configure(|config| config.load_time = Duration::from_millis(100));
    fake.restart();
    let loading = testbed.wait_for("server up", |status| status.server.is_some()).await;
    assert!(!loading.readiness.ready, "{loading:#?}");
    let after = testbed.wait_until_ready().await;
    assert_ne!(before.server, after.server);
    assert!(after.is_verified(&id("a")) && after.is_verified(&id("b")));
    assert_eq!(fake.count_requests("use a"), 2);
}

#[tokio::test]
async fn restart_between_polls_is_detected_by_closed_connection() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut config = fast_config(&fake);
    config.policy.intervals = PollIntervals {
        health: Duration::from_mins(10),
        models: Duration::from_mins(10),
        metrics_retiring: Duration::from_mins(10),
        metrics: Duration::from_mins(10),
    };
    let mut testbed = LoopTestbed::start(config, desired(&["a"], &[]));
    testbed.wait_until_ready().await;
    fake.kill();
    fake.restart();
    testbed.wait_for("suspect", |status| !status.readiness.ready).await;
    testbed.wait_until_ready().await;
    assert_eq!(fake.adapters(), ["a"]);
    assert_eq!(fake.count_requests("use a"), 2);
}

#[tokio::test]
async fn broken_connection_of_another_client_triggers_a_poll() {
    let fake = FakeVllm::start(FakeVllmConfig { load_time: Duration::from_millis(50), ..FakeVllmConfig::default() });
    let mut config = fast_config(&fake);
    config.policy.intervals.health = Duration::from_mins(10);
    let suspect_notify = Arc::new(Notify::new());
    let notify = Arc::clone(&suspect_notify);
    let mut testbed =
        LoopTestbed::start_with(config, desired(&["a"], &[]), |sidecar, _| sidecar.with_suspect_notify(notify));
    testbed.wait_until_ready().await;
    suspect_notify.notify_one();
    testbed.wait_for("suspect", |status| status.readiness.reason == "Suspect").await;
    testbed.wait_until_ready().await;
    assert_eq!(fake.count_requests("use a"), 1, "it was the same server process all the time");
}

#[tokio::test]
async fn pilot_that_crashed_the_server_waits_for_the_operator() {
    let fake = FakeVllm::start(FakeVllmConfig { crashing: ["v2".to_owned()].into(), ..FakeVllmConfig::default() });
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["v1"], &[]));
    testbed.wait_until_ready().await;
    let on_trial = DesiredAdapters { directives: Some(pilot_directives("v2")), ..desired(&["v1", "v2"], &[]) };
    testbed.set_desired(on_trial.clone());
    let crashed = testbed.wait_for_state("v2", AdapterState::ServerDied).await;
    let error = crashed.adapter(&id("v2")).unwrap().last_error.clone().unwrap();
    assert_eq!(error.reason, "ServerDied");
    assert!(!fake.is_running());
    fake.restart();
    let back = testbed.wait_until_ready().await;
    assert!(back.is_verified(&id("v1")));
    assert_eq!(adapter_state(&back, "v2"), Some(AdapterState::ServerDied));
    assert_eq!((fake.count_requests("load v2 /adapters/v2"), fake.count_requests("use v2")), (1, 1));

    let mut rejected = pilot_directives("v2");
    rejected.rejected = vec![id("v2")];
    testbed.set_desired(DesiredAdapters { directives: Some(rejected), ..on_trial.clone() });
    testbed.wait_for_state("v2", AdapterState::Rejected).await;
    fake.configure(|config| config.crashing.clear());
    testbed.set_desired(on_trial);
    testbed.wait_for_state("v2", AdapterState::Verified).await;
}

#[tokio::test]
async fn hanging_adapter_does_not_delay_others() {
    let fake = FakeVllm::start(FakeVllmConfig { hanging: ["slow".to_owned()].into(), ..FakeVllmConfig::default() });
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["slow", "a", "b"], &[]));
    testbed.wait_for_state("b", AdapterState::Verified).await;
    let status = testbed.wait_for_state("a", AdapterState::Verified).await;
    assert_eq!(adapter_state(&status, "slow"), Some(AdapterState::Loading));
}

#[tokio::test]
async fn load_without_answer_is_checked_before_a_retry() {
    let fake =
        FakeVllm::start(FakeVllmConfig { hanging_applied: ["a".to_owned()].into(), ..FakeVllmConfig::default() });
    let mut config = fast_config(&fake);
    config.timeouts.load = Duration::from_millis(200);
    let mut testbed = LoopTestbed::start(config, desired(&["a"], &[]));
    testbed.wait_for_state("a", AdapterState::Verified).await;
    assert_eq!(fake.count_requests("load a /adapters/a"), 1);
}

#[tokio::test]
async fn failing_adapter_is_retried_and_reports_its_error() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let message = "Loading lora a failed: No adapter found for /adapters/a".to_owned();
    fake.configure(|config| drop(config.failing.insert("a".to_owned(), (404, message))));
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &[]));
    let failed = testbed
        .wait_for("two attempts", |status| status.adapter(&id("a")).is_some_and(|adapter| adapter.attempts >= 2))
        .await;
    let adapter = failed.adapter(&id("a")).unwrap();
    assert_eq!(adapter.state, AdapterState::Failed);
    assert_eq!(adapter.last_error.as_ref().unwrap().reason, "AdapterNotFound");
    assert!(adapter.next_try.is_some());
    testbed.wait_until_ready().await;
    fake.configure(|config| config.failing.clear());
    let verified = testbed.wait_for_state("a", AdapterState::Verified).await;
    assert_eq!(verified.adapter(&id("a")).unwrap().attempts, 0);
}

#[tokio::test]
async fn at_most_four_loads_run_concurrently() {
    let fake = FakeVllm::start(FakeVllmConfig { load_time: Duration::from_millis(30), ..FakeVllmConfig::default() });
    let names: Vec<String> = (0..12).map(|number| format!("a{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&names, &[]));
    testbed.wait_until_ready().await;
    assert_eq!(fake.adapters().len(), 12);
    assert_eq!(fake.max_concurrent_loads(), 4);
}

#[tokio::test]
async fn unwanted_adapter_is_unloaded_after_its_last_use() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut config = fast_config(&fake);
    config.policy.unload_grace = Duration::from_secs(2);
    let mut testbed = LoopTestbed::start(config, desired(&["a", "b"], &[]));
    testbed.wait_until_ready().await;
    fake.mark_used("a");
    testbed.set_desired(desired(&[], &["a", "b"]));
    testbed.wait_for_state("b", AdapterState::Gone).await;
    let unloading = testbed.status.borrow().clone();
    assert_eq!(adapter_state(&unloading, "a"), Some(AdapterState::Unloading));
    assert_eq!((fake.count_requests("unload a"), fake.count_requests("unload b")), (0, 1));
    let gone = testbed.wait_for_state("a", AdapterState::Gone).await;
    assert!(gone.adapter(&id("a")).unwrap().last_used.is_some());
    assert_eq!(fake.adapters(), Vec::<String>::new());
}

#[tokio::test]
async fn desired_state_is_refreshed_just_before_an_unload() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    // The file changes back just before the call, which only the refresh shows.
    let mut testbed = LoopTestbed::start_with(fast_config(&fake), desired(&["a"], &[]), |sidecar, desired_sender| {
        sidecar.with_refresh(Arc::new(move || {
            desired_sender.send_replace(Some(Arc::new(desired(&["a", "b"], &[]))));
            Box::pin(async {})
        }))
    });
    testbed.wait_until_ready().await;
    testbed.set_desired(desired(&[], &["a"]));
    testbed.wait_for_state("b", AdapterState::Verified).await;
    assert!(testbed.status.borrow().is_verified(&id("a")));
    assert_eq!(fake.count_requests("unload a"), 0);
}

#[tokio::test]
async fn serving_adapter_is_kept_until_it_stops_serving() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["v1"], &[]));
    testbed.wait_until_ready().await;
    let directives = |serving: &[&str]| {
        let serving: Vec<_> = serving.iter().map(|name| id(name)).collect();
        Some(OperatorDirectives {
            managed: vec!["v*".to_owned()],
            admitted: vec![id("v1")],
            serving,
            ..OperatorDirectives::default()
        })
    };
    testbed.set_desired(DesiredAdapters { directives: directives(&["v1"]), ..desired(&[], &["v1"]) });
    testbed.wait_for_state("v1", AdapterState::UnloadHeld).await;
    // It is also loaded again after a restart.
    fake.kill();
    testbed.wait_for("server down", |status| status.server.is_none()).await;
    fake.restart();
    testbed.wait_for_state("v1", AdapterState::UnloadHeld).await;
    assert_eq!((fake.adapters(), fake.count_requests("unload v1")), (vec!["v1".to_owned()], 0));
    testbed.set_desired(DesiredAdapters { directives: directives(&[]), ..desired(&[], &["v1"]) });
    testbed.wait_for_state("v1", AdapterState::Gone).await;
}

#[tokio::test]
async fn wrong_api_key_is_reported_and_correct_one_works() {
    let fake = FakeVllm::start(FakeVllmConfig { api_key: Some("secret".to_owned()), ..FakeVllmConfig::default() });
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    let refused = testbed.wait_for("problem", |status| status.problem.is_some()).await;
    assert_eq!(refused.problem.as_ref().unwrap().reason, "Unauthorized");
    assert!(!refused.readiness.ready && refused.readiness.message.contains("API key"));

    let mut config = fast_config(&fake);
    config.endpoint = config.endpoint.with_api_key(Some(ApiKey::new("secret")));
    LoopTestbed::start(config, desired(&["a"], &[])).wait_for_state("a", AdapterState::Verified).await;
}

#[tokio::test]
async fn disabled_runtime_updating_is_reported() {
    let fake = FakeVllm::start(FakeVllmConfig { runtime_updating_off: true, ..FakeVllmConfig::default() });
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    let failed = testbed.wait_for_state("a", AdapterState::Failed).await;
    assert_eq!(failed.problem.as_ref().unwrap().reason, "RuntimeUpdatingOff");
    assert!(failed.problem.as_ref().unwrap().message.contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"));
}

#[tokio::test]
async fn server_without_metrics_is_reconciled() {
    let fake = FakeVllm::start(FakeVllmConfig { metrics_closed: true, ..FakeVllmConfig::default() });
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &[]));
    let before = testbed.wait_until_ready().await;
    testbed.set_desired(desired(&["a"], &["b"]));
    testbed.wait_for_state("b", AdapterState::Gone).await;
    fake.kill();
    testbed.wait_for("server down", |status| status.server.is_none()).await;
    fake.restart();
    let after = testbed.wait_until_ready().await;
    assert!(after.is_verified(&id("a")));
    assert_ne!(before.server, after.server);
}

#[tokio::test]
async fn nothing_is_done_before_the_first_valid_file() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let (desired_sender, desired_rx) = watch::channel(None);
    let (sidecar, status) = Sidecar::new(fast_config(&fake), desired_rx).unwrap();
    let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
    running.spawn(sidecar.run(stop.clone()));
    let mut testbed = LoopTestbed { desired: desired_sender, status, stop, running };
    let waiting = testbed.wait_for("server up", |status| status.server.is_some()).await;
    assert_eq!(waiting.readiness.reason, "NoAdaptersFile");
    testbed.set_desired(desired(&["a"], &[]));
    testbed.wait_until_ready().await;
    assert_eq!(fake.adapters(), ["a"]);
}

#[tokio::test]
async fn file_on_disk_is_watched_and_its_errors_are_reported() {
    let text = |name: &str| {
        format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: {name}\n      source: /adapters/{name}\n")
    };
    let (fake, folder) = (FakeVllm::start(FakeVllmConfig::default()), tempfile::tempdir().unwrap());
    let path = folder.path().join("adapters.yaml");
    std::fs::write(&path, text("a")).unwrap();
    let file = AdaptersWatch::open(&path, "configmap.yaml");
    let (sidecar, status) = Sidecar::new(fast_config(&fake), file.desired()).unwrap();
    let sidecar = sidecar.with_file_errors(file.error());
    let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
    running.spawn(sidecar.run(stop.clone()));
    let token = stop.clone();
    running.spawn(async move { file.run(token).await });
    let mut testbed = LoopTestbed { desired: watch::channel(None).0, status, stop, running };
    testbed.wait_for_state("a", AdapterState::Verified).await;
    std::fs::write(&path, "vLLMLoRAConfig: [").unwrap();
    let broken = testbed.wait_for("file error", |status| status.config.error.is_some()).await;
    assert!(broken.is_verified(&id("a")) && broken.readiness.ready);
    std::fs::write(&path, text("b")).unwrap();
    let fixed = testbed.wait_for_state("b", AdapterState::Verified).await;
    assert_eq!((adapter_state(&fixed, "a"), fixed.config.error.clone()), (Some(AdapterState::Unlisted), None));
}

#[tokio::test]
async fn stop_leaves_the_server_unchanged() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    testbed.wait_until_ready().await;
    testbed.stop.cancel();
    timeout(Duration::from_secs(30), testbed.running.join_next())
        .await
        .expect("the sidecar did not stop")
        .unwrap()
        .unwrap();
    assert_eq!(fake.adapters(), ["a"]);
}
