use super::*;
use crate::{
    document_store::{InputFiles, LocalDocumentStore},
    snapshot::tests::ROLLOUT_FILE,
    state::StateFolder,
};
use rollora_api::sidecar_status::{AdapterState, AdapterStatus, ReadinessStatus, ServerIdentity};
use rollora_operator::ports::{AdaptersWrite, DocumentStore, ResourceVersion, WriteOutcome};
use std::{fs, path::Path};
use tokio_util::task::TaskTracker;

/// A fleet whose sidecar statuses are set by the test.
struct FleetFixture {
    store: LocalDocumentStore,
    fleet: LocalFleet,
    statuses: Vec<watch::Sender<Arc<SidecarStatus>>>,
    heartbeats: Vec<watch::Sender<Option<Heartbeat>>>,
    desired: Vec<watch::Receiver<Option<Arc<DesiredAdapters>>>>,
    _folder: tempfile::TempDir,
}

fn open_store(folder: &Path) -> LocalDocumentStore {
    let inputs = InputFiles { rollout: folder.join("rollout.yaml"), adapters: folder.join("adapters.yaml") };
    fs::write(&inputs.rollout, ROLLOUT_FILE).unwrap();
    fs::write(&inputs.adapters, "vLLMLoRAConfig: {}\n").unwrap();
    LocalDocumentStore::open(StateFolder::open(&folder.join("state")).unwrap(), inputs).unwrap()
}

impl FleetFixture {
    fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, drained) = (open_store(folder.path()), Arc::new(Notify::new()));
        let (mut servers, mut sidecars, mut desired_receivers) = (Vec::new(), Vec::new(), Vec::new());
        let (mut statuses, mut heartbeats) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (name, tasks) = (format!("s{number}:80"), TaskTracker::new());
            servers.push(Arc::new(GatewayServer::new(name, "s", 80, tasks, Arc::clone(&drained), Arc::default())));
            let (desired, desired_rx) = watch::channel(None);
            let (status_tx, status) = watch::channel(Arc::new(status_with(&[])));
            let (heartbeat_tx, heartbeat) = watch::channel(None);
            let (url, usage_poll_boost) = (format!("http://s{number}"), rollora_sidecar::UsagePollBoost::default());
            sidecars.push(SidecarHandle { url, desired, status, heartbeat, usage_poll_boost });
            statuses.push(status_tx);
            heartbeats.push(heartbeat_tx);
            desired_receivers.push(desired_rx);
        }
        let fleet = LocalFleet::new(store.clone(), Arc::new(GatewayServers::new(servers)), sidecars, drained);
        fleet.refresh();
        Self { store, fleet, statuses, heartbeats, desired: desired_receivers, _folder: folder }
    }

    async fn write_directives(&self, text: &str) {
        let key = self.store.rollout_key();
        let reference = self.store.snapshot().rollout.spec.adapters_ref.clone();
        let version = ResourceVersion(self.store.snapshot().hash().0);
        let write = AdaptersWrite { user_text: None, directives_text: Some(text.to_owned()) };
        let written = self.store.write_adapters(&key, &reference, &version, &write).await;
        assert!(matches!(written, WriteOutcome::Done(_)), "{written:?}");
    }

    /// Whether the sidecar of a server may load `alias-v2` as pilot.
    fn may_load_pilot(&self, server: usize) -> bool {
        let desired = self.desired[server].borrow().clone().unwrap();
        assert_eq!(desired.hash, self.store.snapshot().hash(), "the hash covers the file and all directives");
        desired
            .directives
            .as_ref()
            .is_some_and(|directives| directives.pilots.iter().any(|pilot| pilot.pod == format!("s{server}:80")))
    }

    async fn readiness(&self) -> Vec<bool> {
        let pool = self.store.snapshot().rollout.spec.pool_ref.clone();
        let servers = Fleet::servers(&self.fleet, &self.store.rollout_key(), &pool).await.unwrap();
        servers.responses.iter().map(|server| server.ready).collect()
    }
}

fn status_with(adapters: &[(&str, AdapterState)]) -> SidecarStatus {
    let adapter = |(name, state): &(&str, AdapterState)| AdapterStatus::new(name.parse().unwrap(), *state);
    SidecarStatus {
        server: Some(ServerIdentity { endpoint: "http://s".to_owned(), start: "1".to_owned() }),
        readiness: ReadinessStatus { ready: true, ..ReadinessStatus::default() },
        adapters: adapters.iter().map(adapter).collect(),
        ..SidecarStatus::default()
    }
}

const PILOT_DIRECTIVES: &str = "managed: ['alias-v*']\npilots: [{id: alias-v2, pod: 's0:80'}]\n";

#[tokio::test]
async fn only_an_idle_pilot_may_load_immediately() {
    let fixture = FleetFixture::new(2);
    fixture.write_directives(PILOT_DIRECTIVES).await;
    fixture.fleet.refresh();
    assert_eq!((fixture.may_load_pilot(0), fixture.may_load_pilot(1)), (true, false));
}

#[tokio::test]
async fn busy_pilot_loads_after_its_last_request() {
    let fixture = FleetFixture::new(2);
    let busy = fixture.fleet.servers().occupy(0);
    fixture.write_directives(PILOT_DIRECTIVES).await;
    fixture.fleet.refresh();
    assert!(!fixture.may_load_pilot(0));
    let following = fixture.fleet.run();
    let ended = async {
        drop(busy);
        let mut desired = fixture.desired[0].clone();
        desired.wait_for(|_| fixture.may_load_pilot(0)).await.unwrap();
    };
    tokio::select! {
        () = following => panic!("the fleet stopped following changes"),
        () = ended => {}
    }
}

#[tokio::test]
async fn busy_pilot_does_not_wait_if_it_is_the_only_server() {
    let fixture = FleetFixture::new(1);
    let _busy = fixture.fleet.servers().occupy(0);
    fixture.write_directives(PILOT_DIRECTIVES).await;
    fixture.fleet.refresh();
    assert!(fixture.may_load_pilot(0));
}

#[tokio::test]
async fn suspect_server_is_not_ready_until_its_status_changes() {
    let fixture = FleetFixture::new(2);
    let suspect = Arc::clone(&fixture.fleet.servers().all()[0]);
    assert_eq!(fixture.readiness().await, [true, true]);
    suspect.mark_suspect();
    assert_eq!(fixture.readiness().await, [false, true]);
    assert!(!fixture.fleet.server_views()[0].ready);
    let report = async {
        fixture.statuses[0].send_replace(Arc::new(status_with(&[("v1", AdapterState::Verified)])));
        while suspect.is_suspect() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = fixture.fleet.watch_sidecar(0) => panic!("the fleet stopped following the sidecar"),
        () = report => {}
    }
    assert_eq!(fixture.readiness().await, [true, true]);
}

#[tokio::test]
async fn usage_read_time_reaches_the_operator_without_a_wakeup() {
    let fixture = FleetFixture::new(1);
    let mut status = fixture.fleet.sidecar_statuses().remove(0);
    status.mark_unchanged();
    let at = clock::now();
    let last_iteration = tokio::time::Instant::now();
    fixture.heartbeats[0].send_replace(Some(Heartbeat {
        last_iteration,
        last_poll: None,
        last_reconcile: None,
        usage_read_at: Some(at),
    }));
    let pool = fixture.store.snapshot().rollout.spec.pool_ref.clone();
    let servers = Fleet::servers(&fixture.fleet, &fixture.store.rollout_key(), &pool).await.unwrap();
    assert_eq!(servers.responses[0].status.as_ref().unwrap().usage_read_at, Some(at));
    assert_eq!(status.has_changed().ok(), Some(false));
}

#[tokio::test]
async fn gateway_knows_what_the_operator_has_read() {
    use crate::gateway::ServerRequirement;
    let fixture = FleetFixture::new(2);
    fixture.statuses[1].send_replace(Arc::new(status_with(&[("alias-v2", AdapterState::Verified)])));
    let servers = fixture.fleet.servers();
    assert!(servers.acquire(ServerRequirement::Target("alias-v2"), &[]).is_err(), "not read yet");
    fixture.readiness().await;
    let guard = servers.acquire(ServerRequirement::Target("alias-v2"), &[]).unwrap();
    assert_eq!(guard.server().name, "s1:80");
}

#[tokio::test]
async fn server_on_trial_is_shown_as_pilot() {
    let fixture = FleetFixture::new(2);
    fixture.write_directives(PILOT_DIRECTIVES).await;
    fixture.statuses[0].send_replace(Arc::new(status_with(&[("alias-v2", AdapterState::Loading)])));
    let pilots: Vec<bool> = fixture.fleet.server_views().iter().map(|server| server.pilot).collect();
    assert_eq!(pilots, [true, false]);
    fixture.statuses[0].send_replace(Arc::new(status_with(&[("alias-v2", AdapterState::Verified)])));
    assert!(!fixture.fleet.server_views()[0].pilot);
}
