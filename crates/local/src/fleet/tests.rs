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

/// A fleet whose sidecars say what the test says.
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
        let (store, bell) = (open_store(folder.path()), Arc::new(Notify::new()));
        let (mut servers, mut members, mut told) = (Vec::new(), Vec::new(), Vec::new());
        let (mut statuses, mut heartbeats) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (name, tasks) = (format!("s{number}:80"), TaskTracker::new());
            servers.push(Arc::new(GatewayServer::new(name, "s", 80, tasks, Arc::clone(&bell), Arc::default())));
            let (desired, wanted) = watch::channel(None);
            let (status, said) = watch::channel(Arc::new(status_with(&[])));
            let (pulse, beats) = watch::channel(None);
            let (url, onlookers) = (format!("http://s{number}"), rollora_sidecar::UsagePollBoost::default());
            members.push(SidecarHandle { url, desired, status: said, heartbeat: beats, usage_poll_boost: onlookers });
            statuses.push(status);
            heartbeats.push(pulse);
            told.push(wanted);
        }
        let fleet = LocalFleet::new(store.clone(), Arc::new(GatewayServers::new(servers)), members, bell);
        fleet.refresh();
        Self { store, fleet, statuses, heartbeats, desired: told, _folder: folder }
    }

    async fn write_directives(&self, text: &str) {
        let key = self.store.rollout_key();
        let reference = self.store.snapshot().rollout.spec.adapters_ref.clone();
        let version = ResourceVersion(self.store.snapshot().hash().0);
        let write = AdaptersWrite { user_text: None, directives_text: Some(text.to_owned()) };
        let written = self.store.write_adapters(&key, &reference, &version, &write).await;
        assert!(matches!(written, WriteOutcome::Done(_)), "{written:?}");
    }

    /// Whether the sidecar of a server may try `v2`.
    fn may_load_pilot(&self, server: usize) -> bool {
        let desired = self.desired[server].borrow().clone().unwrap();
        assert_eq!(desired.hash, self.store.snapshot().hash(), "the hash is that of the file and the whole key");
        desired
            .directives
            .as_ref()
            .is_some_and(|key| key.pilots.iter().any(|pilot| pilot.pod == format!("s{server}:80")))
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
async fn a_quiet_pilot_may_try_at_once_and_nobody_else_may() {
    let machine = FleetFixture::new(2);
    machine.write_directives(PILOT_DIRECTIVES).await;
    machine.fleet.refresh();
    assert_eq!((machine.may_load_pilot(0), machine.may_load_pilot(1)), (true, false));
}

#[tokio::test]
async fn a_busy_pilot_tries_when_its_last_request_has_ended() {
    let machine = FleetFixture::new(2);
    let busy = machine.fleet.servers().occupy(0);
    machine.write_directives(PILOT_DIRECTIVES).await;
    machine.fleet.refresh();
    assert!(!machine.may_load_pilot(0));
    let following = machine.fleet.run();
    let ended = async {
        drop(busy);
        let mut desired = machine.desired[0].clone();
        desired.wait_for(|_| machine.may_load_pilot(0)).await.unwrap();
    };
    tokio::select! {
        () = following => panic!("it follows for as long as the process runs"),
        () = ended => {}
    }
}

#[tokio::test]
async fn a_busy_pilot_does_not_wait_where_nobody_else_could_take_its_requests() {
    let machine = FleetFixture::new(1);
    let _busy = machine.fleet.servers().occupy(0);
    machine.write_directives(PILOT_DIRECTIVES).await;
    machine.fleet.refresh();
    assert!(machine.may_load_pilot(0));
}

#[tokio::test]
async fn a_suspect_server_is_out_until_its_sidecar_has_said_something_new() {
    let machine = FleetFixture::new(2);
    let suspect = Arc::clone(&machine.fleet.servers().all()[0]);
    assert_eq!(machine.readiness().await, [true, true]);
    suspect.mark_suspect();
    assert_eq!(machine.readiness().await, [false, true]);
    assert!(!machine.fleet.server_views()[0].ready);
    let said = async {
        machine.statuses[0].send_replace(Arc::new(status_with(&[("v1", AdapterState::Verified)])));
        while suspect.is_suspect() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = machine.fleet.watch_sidecar(0) => panic!("it follows for as long as the sidecar runs"),
        () = said => {}
    }
    assert_eq!(machine.readiness().await, [true, true]);
}

#[tokio::test]
async fn the_operator_is_told_when_uses_were_read_and_nobody_is_woken_by_it() {
    let machine = FleetFixture::new(1);
    let mut status = machine.fleet.sidecar_statuses().remove(0);
    status.mark_unchanged();
    let at = clock::now();
    let turned = tokio::time::Instant::now();
    machine.heartbeats[0].send_replace(Some(Heartbeat {
        last_iteration: turned,
        last_poll: None,
        last_reconcile: None,
        usage_read_at: Some(at),
    }));
    let pool = machine.store.snapshot().rollout.spec.pool_ref.clone();
    let servers = Fleet::servers(&machine.fleet, &machine.store.rollout_key(), &pool).await.unwrap();
    assert_eq!(servers.responses[0].status.as_ref().unwrap().usage_read_at, Some(at));
    assert_eq!(status.has_changed().ok(), Some(false));
}

#[tokio::test]
async fn the_gateway_knows_what_the_operator_was_told() {
    use crate::gateway::ServerRequirement;
    let machine = FleetFixture::new(2);
    machine.statuses[1].send_replace(Arc::new(status_with(&[("alias-v2", AdapterState::Verified)])));
    let servers = machine.fleet.servers();
    assert!(servers.acquire(ServerRequirement::Target("alias-v2"), &[]).is_err(), "nobody has looked yet");
    machine.readiness().await;
    let lease = servers.acquire(ServerRequirement::Target("alias-v2"), &[]).unwrap();
    assert_eq!(lease.server().name, "s1:80");
}

#[tokio::test]
async fn a_server_on_trial_is_shown_as_the_pilot() {
    let machine = FleetFixture::new(2);
    machine.write_directives(PILOT_DIRECTIVES).await;
    machine.statuses[0].send_replace(Arc::new(status_with(&[("alias-v2", AdapterState::Loading)])));
    let pilots: Vec<bool> = machine.fleet.server_views().iter().map(|server| server.pilot).collect();
    assert_eq!(pilots, [true, false]);
    machine.statuses[0].send_replace(Arc::new(status_with(&[("alias-v2", AdapterState::Verified)])));
    assert!(!machine.fleet.server_views()[0].pilot);
}
