//! The loop against a small vLLM on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says by a panic what is wrong")]
#![allow(
    clippy::disallowed_methods,
    reason = "the server writes the time of uses, as the real one does, and tests wait"
)]

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

/// Everything an order of magnitude faster than by default.
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

/// A sidecar at work.
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
        finish: impl FnOnce(Sidecar, watch::Sender<Option<Arc<DesiredAdapters>>>) -> Sidecar,
    ) -> Self {
        let (desired, wanted) = watch::channel(Some(Arc::new(first)));
        let (sidecar, status) = Sidecar::new(config, wanted).unwrap();
        let sidecar = finish(sidecar, desired.clone());
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        running.spawn(sidecar.run(stop.clone()));
        Self { desired, status, stop, running }
    }

    fn set_desired(&self, desired: DesiredAdapters) {
        self.desired.send_replace(Some(Arc::new(desired)));
    }

    /// Waits for a status like this.
    async fn wait_for(&mut self, what: &str, reached: impl Fn(&SidecarStatus) -> bool) -> Arc<SidecarStatus> {
        let waited = timeout(Duration::from_secs(30), self.status.wait_for(|status| reached(status))).await;
        let found = waited.map(|status| status.unwrap().clone());
        found.unwrap_or_else(|_| panic!("{what}: {:#?}", self.status.borrow()))
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
async fn what_the_file_lists_is_loaded_proven_and_told() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &["c", "base"]));
    let status = bed.wait_until_ready().await;
    assert!(status.is_verified(&id("a")) && status.is_verified(&id("b")));
    assert_eq!(adapter_state(&status, "c"), Some(AdapterState::Gone));
    assert_eq!(status.base_models, ["base"]);
    assert_eq!(status.config.hash, Some(desired(&["a", "b"], &["c", "base"]).hash));
    let mut log = fake.requests();
    log.sort();
    assert_eq!(log, ["load a /adapters/a", "load b /adapters/b", "use a", "use b"]);
}

#[tokio::test]
async fn a_restart_takes_readiness_away_until_what_was_there_is_back() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &[]));
    let before = bed.wait_until_ready().await;
    fake.kill();
    bed.wait_for("away", |status| status.server.is_none() && !status.readiness.ready).await;
    fake.configure(|knobs| knobs.load_time = Duration::from_millis(100));
    fake.restart();
    let loading = bed.wait_for("back", |status| status.server.is_some()).await;
    assert!(!loading.readiness.ready, "{loading:#?}");
    let after = bed.wait_until_ready().await;
    assert_ne!(before.server, after.server);
    assert!(after.is_verified(&id("a")) && after.is_verified(&id("b")));
    assert_eq!(fake.count_requests("use a"), 2);
}

#[tokio::test]
async fn a_restart_between_two_polls_is_noticed_by_the_closed_connection() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut config = fast_config(&fake);
    config.policy.intervals = PollIntervals {
        health: Duration::from_mins(10),
        models: Duration::from_mins(10),
        metrics_retiring: Duration::from_mins(10),
        metrics: Duration::from_mins(10),
    };
    let mut bed = LoopTestbed::start(config, desired(&["a"], &[]));
    bed.wait_until_ready().await;
    fake.kill();
    fake.restart();
    bed.wait_for("suspect", |status| !status.readiness.ready).await;
    bed.wait_until_ready().await;
    assert_eq!(fake.adapters(), ["a"]);
    assert_eq!(fake.count_requests("use a"), 2);
}

#[tokio::test]
async fn a_connection_that_broke_elsewhere_makes_it_look_at_once() {
    let fake = FakeVllm::start(FakeVllmConfig { load_time: Duration::from_millis(50), ..FakeVllmConfig::default() });
    let mut config = fast_config(&fake);
    config.policy.intervals.health = Duration::from_mins(10);
    let doubts = Arc::new(Notify::new());
    let bell = Arc::clone(&doubts);
    let mut bed = LoopTestbed::start_with(config, desired(&["a"], &[]), |sidecar, _| sidecar.with_suspect_notify(bell));
    bed.wait_until_ready().await;
    doubts.notify_one();
    bed.wait_for("suspect", |status| status.readiness.reason == "Suspect").await;
    bed.wait_until_ready().await;
    assert_eq!(fake.count_requests("use a"), 1, "it was the same server all the time");
}

#[tokio::test]
async fn a_pilot_that_ends_the_server_is_not_tried_again_before_the_operator_has_spoken() {
    let fake = FakeVllm::start(FakeVllmConfig { crashing: ["v2".to_owned()].into(), ..FakeVllmConfig::default() });
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["v1"], &[]));
    bed.wait_until_ready().await;
    let on_trial = DesiredAdapters { directives: Some(pilot_directives("v2")), ..desired(&["v1", "v2"], &[]) };
    bed.set_desired(on_trial.clone());
    let died = bed.wait_for_state("v2", AdapterState::ServerDied).await;
    let words = died.adapter(&id("v2")).unwrap().last_error.clone().unwrap();
    assert_eq!(words.reason, "ServerDied");
    assert!(!fake.is_running());
    fake.restart();
    let back = bed.wait_until_ready().await;
    assert!(back.is_verified(&id("v1")));
    assert_eq!(adapter_state(&back, "v2"), Some(AdapterState::ServerDied));
    assert_eq!((fake.count_requests("load v2 /adapters/v2"), fake.count_requests("use v2")), (1, 1));

    let mut rejected = pilot_directives("v2");
    rejected.rejected = vec![id("v2")];
    bed.set_desired(DesiredAdapters { directives: Some(rejected), ..on_trial.clone() });
    bed.wait_for_state("v2", AdapterState::Rejected).await;
    fake.configure(|knobs| knobs.crashing.clear());
    bed.set_desired(on_trial);
    bed.wait_for_state("v2", AdapterState::Verified).await;
}

#[tokio::test]
async fn an_adapter_that_hangs_delays_no_other() {
    let fake = FakeVllm::start(FakeVllmConfig { hanging: ["slow".to_owned()].into(), ..FakeVllmConfig::default() });
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["slow", "a", "b"], &[]));
    bed.wait_for_state("b", AdapterState::Verified).await;
    let status = bed.wait_for_state("a", AdapterState::Verified).await;
    assert_eq!(adapter_state(&status, "slow"), Some(AdapterState::Loading));
}

#[tokio::test]
async fn a_load_without_an_answer_is_looked_up_before_it_is_tried_again() {
    let fake =
        FakeVllm::start(FakeVllmConfig { hanging_applied: ["a".to_owned()].into(), ..FakeVllmConfig::default() });
    let mut config = fast_config(&fake);
    config.timeouts.load = Duration::from_millis(200);
    let mut bed = LoopTestbed::start(config, desired(&["a"], &[]));
    bed.wait_for_state("a", AdapterState::Verified).await;
    assert_eq!(fake.count_requests("load a /adapters/a"), 1);
}

#[tokio::test]
async fn a_failing_adapter_is_tried_again_and_says_why() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let words = "Loading lora a failed: No adapter found for /adapters/a".to_owned();
    fake.configure(|knobs| drop(knobs.failing.insert("a".to_owned(), (404, words))));
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &[]));
    let failed = bed
        .wait_for("two attempts", |status| status.adapter(&id("a")).is_some_and(|adapter| adapter.attempts >= 2))
        .await;
    let adapter = failed.adapter(&id("a")).unwrap();
    assert_eq!(adapter.state, AdapterState::Failed);
    assert_eq!(adapter.last_error.as_ref().unwrap().reason, "AdapterNotFound");
    assert!(adapter.next_try.is_some());
    bed.wait_until_ready().await;
    fake.configure(|knobs| knobs.failing.clear());
    let verified = bed.wait_for_state("a", AdapterState::Verified).await;
    assert_eq!(verified.adapter(&id("a")).unwrap().attempts, 0);
}

#[tokio::test]
async fn at_most_four_loads_go_on_at_once() {
    let fake = FakeVllm::start(FakeVllmConfig { load_time: Duration::from_millis(30), ..FakeVllmConfig::default() });
    let names: Vec<String> = (0..12).map(|number| format!("a{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&names, &[]));
    bed.wait_until_ready().await;
    assert_eq!(fake.adapters().len(), 12);
    assert_eq!(fake.max_concurrent_loads(), 4);
}

#[tokio::test]
async fn an_unwanted_adapter_goes_when_its_use_has_ended() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut config = fast_config(&fake);
    config.policy.unload_grace = Duration::from_secs(2);
    let mut bed = LoopTestbed::start(config, desired(&["a", "b"], &[]));
    bed.wait_until_ready().await;
    fake.mark_used("a");
    bed.set_desired(desired(&[], &["a", "b"]));
    bed.wait_for_state("b", AdapterState::Gone).await;
    let unloading = bed.status.borrow().clone();
    assert_eq!(adapter_state(&unloading, "a"), Some(AdapterState::Unloading));
    assert_eq!((fake.count_requests("unload a"), fake.count_requests("unload b")), (0, 1));
    let gone = bed.wait_for_state("a", AdapterState::Gone).await;
    assert!(gone.adapter(&id("a")).unwrap().last_used.is_some());
    assert_eq!(fake.adapters(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_desired_is_read_again_just_before_an_unload() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    // The file changes back in the last moment: only the reading before the call sees it.
    let mut bed = LoopTestbed::start_with(fast_config(&fake), desired(&["a"], &[]), |sidecar, desired_now| {
        sidecar.with_refresh(Arc::new(move || {
            desired_now.send_replace(Some(Arc::new(desired(&["a", "b"], &[]))));
            Box::pin(async {})
        }))
    });
    bed.wait_until_ready().await;
    bed.set_desired(desired(&[], &["a"]));
    bed.wait_for_state("b", AdapterState::Verified).await;
    assert!(bed.status.borrow().is_verified(&id("a")));
    assert_eq!(fake.count_requests("unload a"), 0);
}

#[tokio::test]
async fn serving_adapters_are_held_until_they_serve_no_more() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["v1"], &[]));
    bed.wait_until_ready().await;
    let key = |serving: &[&str]| {
        let serving: Vec<_> = serving.iter().map(|name| id(name)).collect();
        Some(OperatorDirectives {
            managed: vec!["v*".to_owned()],
            admitted: vec![id("v1")],
            serving,
            ..OperatorDirectives::default()
        })
    };
    bed.set_desired(DesiredAdapters { directives: key(&["v1"]), ..desired(&[], &["v1"]) });
    bed.wait_for_state("v1", AdapterState::UnloadHeld).await;
    // Also over a restart.
    fake.kill();
    bed.wait_for("away", |status| status.server.is_none()).await;
    fake.restart();
    bed.wait_for_state("v1", AdapterState::UnloadHeld).await;
    assert_eq!((fake.adapters(), fake.count_requests("unload v1")), (vec!["v1".to_owned()], 0));
    bed.set_desired(DesiredAdapters { directives: key(&[]), ..desired(&[], &["v1"]) });
    bed.wait_for_state("v1", AdapterState::Gone).await;
}

#[tokio::test]
async fn a_wrong_key_is_said_and_a_right_one_works() {
    let fake = FakeVllm::start(FakeVllmConfig { api_key: Some("secret".to_owned()), ..FakeVllmConfig::default() });
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    let refused = bed.wait_for("refused", |status| status.problem.is_some()).await;
    assert_eq!(refused.problem.as_ref().unwrap().reason, "Unauthorized");
    assert!(!refused.readiness.ready && refused.readiness.message.contains("API key"));

    let mut config = fast_config(&fake);
    config.endpoint = config.endpoint.with_api_key(Some(ApiKey::new("secret")));
    LoopTestbed::start(config, desired(&["a"], &[])).wait_for_state("a", AdapterState::Verified).await;
}

#[tokio::test]
async fn a_server_without_runtime_updating_is_said_to_be_one() {
    let fake = FakeVllm::start(FakeVllmConfig { runtime_updating_off: true, ..FakeVllmConfig::default() });
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    let failed = bed.wait_for_state("a", AdapterState::Failed).await;
    assert_eq!(failed.problem.as_ref().unwrap().reason, "RuntimeUpdatingOff");
    assert!(failed.problem.as_ref().unwrap().message.contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"));
}

#[tokio::test]
async fn a_server_that_shows_no_metrics_is_served_too() {
    let fake = FakeVllm::start(FakeVllmConfig { metrics_closed: true, ..FakeVllmConfig::default() });
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &[]));
    let before = bed.wait_until_ready().await;
    bed.set_desired(desired(&["a"], &["b"]));
    bed.wait_for_state("b", AdapterState::Gone).await;
    fake.kill();
    bed.wait_for("away", |status| status.server.is_none()).await;
    fake.restart();
    let after = bed.wait_until_ready().await;
    assert!(after.is_verified(&id("a")));
    assert_ne!(before.server, after.server);
}

#[tokio::test]
async fn before_the_first_good_file_nothing_is_done() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let (desired_now, wanted) = watch::channel(None);
    let (sidecar, status) = Sidecar::new(fast_config(&fake), wanted).unwrap();
    let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
    running.spawn(sidecar.run(stop.clone()));
    let mut bed = LoopTestbed { desired: desired_now, status, stop, running };
    let waiting = bed.wait_for("seen", |status| status.server.is_some()).await;
    assert_eq!(waiting.readiness.reason, "NoAdaptersFile");
    bed.set_desired(desired(&["a"], &[]));
    bed.wait_until_ready().await;
    assert_eq!(fake.adapters(), ["a"]);
}

#[tokio::test]
async fn a_file_on_disk_is_followed_and_what_is_wrong_with_it_is_told() {
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
    let mut bed = LoopTestbed { desired: watch::channel(None).0, status, stop, running };
    bed.wait_for_state("a", AdapterState::Verified).await;
    std::fs::write(&path, "vLLMLoRAConfig: [").unwrap();
    let broken = bed.wait_for("told", |status| status.config.error.is_some()).await;
    assert!(broken.is_verified(&id("a")) && broken.readiness.ready);
    std::fs::write(&path, text("b")).unwrap();
    let mended = bed.wait_for_state("b", AdapterState::Verified).await;
    assert_eq!((adapter_state(&mended, "a"), mended.config.error.clone()), (Some(AdapterState::Unlisted), None));
}

#[tokio::test]
async fn stopping_leaves_the_server_as_it_is() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    bed.wait_until_ready().await;
    bed.stop.cancel();
    timeout(Duration::from_secs(30), bed.running.join_next()).await.expect("it ends").unwrap().unwrap();
    assert_eq!(fake.adapters(), ["a"]);
}
