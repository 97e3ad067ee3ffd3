//! A stand-in for the kubelet: it runs the pods of its node as processes of this machine.
//!
//! What it does as a kubelet does:
//! - It takes the pods of its node from the API server and gives each an address. It writes their status at every
//!   change: phase, conditions with the times of their changes, containers with ids, restarts and how they ended.
//! - Init containers first, one after the other; a native sidecar (`restartPolicy: Always`) stays, and the next one waits
//!   until it has started. Containers that end are started again as the pod's `restartPolicy` says, at once the first
//!   time and then after 10 s, 20 s, and so on up to 5 minutes.
//! - Startup, readiness and liveness probes (`httpGet`, `tcpSocket`, `exec`) with their delays, periods of a second at
//!   least, timeouts and thresholds.
//! - `configMap`, `secret`, `downwardAPI`, `projected` and `emptyDir` volumes; files change all at once by the swap of
//!   `..data`, some time after their source. A key that `items` does not name is not there; what is missing and not
//!   optional keeps the pod from starting.
//! - Environment with values, fields of the pod, keys of ConfigMaps and Secrets, and `$(VAR)` there, in commands and in
//!   arguments.
//! - Tokens of the pod's service account, bound to the pod, good for ten minutes and renewed before that.
//! - A pod that is deleted runs its `preStop` hooks (`sleep`, `exec`), gets SIGTERM, and SIGKILL when its grace period
//!   is over; sidecars end behind the containers, the last one first. Then the object goes.
//!
//! What it does not:
//! - There are no images, no isolation and no limits. An image is a name for a program of this machine ([`Programs`]).
//!   Processes see the machine's files: a path below a `mountPath` that stands in a command, an argument or a variable
//!   is replaced by the folder of the pod that stands for it; paths in a program's own files are not.
//! - There are no network namespaces: a pod's address is one of 127.0.0.0/8 (Linux), and its programs have to listen on
//!   that address alone. Nothing keeps them from listening elsewhere.
//! - Where a kubelet mounts a token at `/var/run/secrets`, the containers get `KUBECONFIG`, which names the file of the
//!   token; in-cluster configuration finds nothing.
//! - No gRPC probes, `postStart` hooks, `subPath`, resources, host network, ephemeral containers, init containers that
//!   run again. A pod that asks for something that would change what it does is refused with words.
//! - While a pod ends it is not probed any more. What a kubelet does again after its own restart is not done.
//! - It neither registers a node nor schedules: who creates a pod names the node.

mod backoff;
mod config_cache;
mod container;
mod events;
mod expansion;
mod loopback;
mod pod;
mod probes;
mod programs;
mod projection;
mod status;
mod token;
mod volumes;

pub use backoff::RestartBackoff;
pub use container::ContainerHandle;
pub use programs::{HOST_IMAGE, ImagePrograms, Invocation, LaunchSpec, ProcessFactory};

use super::control_plane::ControlPlane;
use anyhow::{Context as _, Result};
use config_cache::ConfigCache;
use events::PodEventRecorder;
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use loopback::LoopbackSubnet;
use pod::{DesiredPodState, PodWorker};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};

/// How long the object of a container may take to appear.
const CONTAINER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a kubelet is made of.
#[derive(Clone)]
pub struct KubeletOptions {
    /// A client of the API server with all rights.
    pub client: Client,
    /// Where pods find the API server.
    pub api_server: String,
    /// The file with the certificates of the API server's authority.
    pub ca_certificate: PathBuf,
    /// The namespace whose pods it takes.
    pub namespace: String,
    /// The node that it is.
    pub node_name: String,
    /// What stands for images.
    pub programs: ImagePrograms,
    /// Where the volumes and the logs are.
    pub folder: PathBuf,
    /// How long after a change of a ConfigMap or a Secret the files follow.
    pub projection_delay: Duration,
    /// How old a token becomes.
    pub token_renewal_interval: Duration,
    /// When containers that ended are started again.
    pub backoff: RestartBackoff,
}

impl KubeletOptions {
    /// A node that projects at once, and whose tokens become eight minutes old.
    pub async fn new(plane: &ControlPlane, namespace: &str, programs: ImagePrograms, folder: PathBuf) -> Result<Self> {
        Ok(Self {
            client: plane.admin_client().await?,
            api_server: plane.url(),
            ca_certificate: plane.ca_certificate(),
            namespace: namespace.to_owned(),
            node_name: "bed".to_owned(),
            programs,
            folder,
            projection_delay: Duration::ZERO,
            token_renewal_interval: Duration::from_mins(8),
            backoff: RestartBackoff::default(),
        })
    }
}

impl fmt::Debug for KubeletOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { api_server, namespace, node_name: node, .. } = self;
        write!(f, "Options({node} of {namespace} at {api_server})")
    }
}

/// What all pods have in common.
struct NodeContext {
    client: Client,
    api_server: token::ApiServerInfo,
    namespace: String,
    programs: ImagePrograms,
    folder: PathBuf,
    addresses: Arc<LoopbackSubnet>,
    sources: ConfigCache,
    projection_delay: watch::Sender<Duration>,
    token_renewal_interval: Duration,
    backoff: RestartBackoff,
    recorder: PodEventRecorder,
}

impl fmt::Debug for NodeContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({} of {})", self.folder.display(), self.namespace)
    }
}

impl NodeContext {
    /// Waits as long as files follow their sources. A shorter time counts at once.
    async fn wait_projection_delay(&self) {
        let begin = crate::clock::now();
        let mut delay = self.projection_delay.subscribe();
        loop {
            let rest = delay.borrow_and_update().saturating_sub(begin.elapsed());
            if rest.is_zero() {
                return;
            }
            // An error means that the bed ends.
            drop(tokio::time::timeout(rest, delay.changed()).await);
        }
    }
}

/// The containers of every pod, by the pod's name; with its UID, because names come again.
#[derive(Debug, Default)]
struct PodRegistry {
    pods: Mutex<BTreeMap<String, (String, Vec<ContainerHandle>)>>,
    changed: watch::Sender<()>,
}

impl PodRegistry {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, (String, Vec<ContainerHandle>)>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: String, uid: String, containers: Vec<ContainerHandle>) {
        self.pods().insert(name, (uid, containers));
        self.changed.send_replace(());
    }

    fn remove(&self, name: &str, uid: &str) {
        let mut pods = self.pods();
        if pods.get(name).is_some_and(|(known, _)| known == uid) {
            pods.remove(name);
        }
    }
}

/// The stand-in. Everything it started ends when it is dropped.
#[derive(Debug)]
pub struct Kubelet {
    context: Arc<NodeContext>,
    registry: Arc<PodRegistry>,
    tasks: JoinSet<()>,
}

impl Kubelet {
    /// Begins to run the pods of its node.
    pub fn start(options: KubeletOptions) -> Result<Self> {
        let server = token::ApiServerInfo::new(&options.api_server, &options.ca_certificate)?;
        let client = options.client;
        let (teller, publisher) = events::channel();
        let context = Arc::new(NodeContext {
            client: client.clone(),
            api_server: server,
            namespace: options.namespace,
            programs: options.programs,
            folder: options.folder,
            addresses: LoopbackSubnet::reserve()?,
            sources: ConfigCache::new(),
            projection_delay: watch::Sender::new(options.projection_delay),
            token_renewal_interval: options.token_renewal_interval,
            backoff: options.backoff,
            recorder: teller,
        });
        let registry = Arc::new(PodRegistry::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(publisher.run(client, options.node_name.clone()));
        tasks.spawn({
            let context = Arc::clone(&context);
            async move { context.sources.run(&context.client, &context.namespace).await }
        });
        tasks.spawn(watch_pods(Arc::clone(&context), Arc::clone(&registry), options.node_name));
        Ok(Self { context, registry, tasks })
    }

    /// From now on files follow their sources so long after a change.
    pub fn set_projection_delay(&self, delay: Duration) {
        self.context.projection_delay.send_replace(delay);
    }

    /// A container, as soon as the kubelet knows its pod.
    pub async fn container(&self, pod: &str, name: &str) -> Result<ContainerHandle> {
        let mut changes = self.registry.changed.subscribe();
        let find = async {
            loop {
                if let Some(container) = self.find_container(pod, name) {
                    return container;
                }
                if changes.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        let found = tokio::time::timeout(CONTAINER_TIMEOUT, find).await;
        found.with_context(|| format!("the kubelet knows no container {name} of a pod {pod}"))
    }

    /// A container, where the kubelet knows its pod.
    pub fn find_container(&self, pod: &str, name: &str) -> Option<ContainerHandle> {
        let pods = self.registry.pods();
        pods.get(pod)?.1.iter().find(|container| container.name() == name).cloned()
    }

    /// All containers.
    pub fn containers(&self) -> Vec<ContainerHandle> {
        self.registry.pods().values().flat_map(|(_, containers)| containers.clone()).collect()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.tasks.abort_all();
        self.containers().iter().for_each(ContainerHandle::close);
    }
}

/// Gives every pod of the node a worker, and tells it when the pod has to end. Never returns.
async fn watch_pods(context: Arc<NodeContext>, registry: Arc<PodRegistry>, node: String) {
    let api = Api::<Pod>::namespaced(context.client.clone(), &context.namespace);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut workers = JoinSet::new();
    let mut orders: BTreeMap<String, watch::Sender<DesiredPodState>> = BTreeMap::new();
    let mut listed = BTreeSet::new();
    loop {
        // An error of the watch is one of the API server's being away: it is tried again.
        let Ok(Some(event)) = events.try_next().await else { continue };
        while workers.try_join_next().is_some() {}
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitDone => {
                for (uid, order) in &orders {
                    if !listed.contains(uid) {
                        order.send_if_modified(mark_deleted);
                    }
                }
            }
            watcher::Event::Delete(pod) => {
                if let Some(order) = orders.remove(&pod.uid().unwrap_or_default()) {
                    order.send_if_modified(mark_deleted);
                    // Who works on it holds the other end until it is done.
                    workers.spawn(async move { order.closed().await });
                }
            }
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                let uid = pod.uid().unwrap_or_default();
                listed.insert(uid.clone());
                let wanted = desired_state(&pod);
                if let Some(order) = orders.get(&uid) {
                    order.send_if_modified(|order| std::mem::replace(order, wanted) != wanted);
                } else if !is_terminal(&pod)
                    && let Some(order) = start_worker(&context, &registry, &mut workers, pod, wanted)
                {
                    orders.insert(uid, order);
                }
            }
        }
    }
}

fn mark_deleted(order: &mut DesiredPodState) -> bool {
    std::mem::replace(order, DesiredPodState::Deleted) != DesiredPodState::Deleted
}

fn desired_state(pod: &Pod) -> DesiredPodState {
    if pod.metadata.deletion_timestamp.is_none() {
        return DesiredPodState::Running;
    }
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    DesiredPodState::Terminating(Duration::from_secs(grace.unsigned_abs()))
}

/// A pod that has ended for good, or that was refused.
fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn start_worker(
    context: &Arc<NodeContext>,
    registry: &Arc<PodRegistry>,
    workers: &mut JoinSet<()>,
    pod: Pod,
    order: DesiredPodState,
) -> Option<watch::Sender<DesiredPodState>> {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    match PodWorker::new(context, pod.clone()) {
        Ok(worker) => {
            let (sender, receiver) = watch::channel(order);
            let (worker, registry) = (Arc::new(worker), Arc::clone(registry));
            registry.add(name.clone(), uid.clone(), worker.containers());
            workers.spawn(async move {
                worker.run(receiver).await;
                registry.remove(&name, &uid);
            });
            Some(sender)
        }
        Err(error) => {
            workers.spawn(reject_pod(Arc::clone(context), pod, format!("{error:#}")));
            None
        }
    }
}

/// A pod that cannot be run here.
async fn reject_pod(context: Arc<NodeContext>, pod: Pod, why: String) {
    context.recorder.warning(&pod, "UnexpectedAdmissionError", why.clone());
    let status = json!({ "phase": "Failed", "reason": "UnexpectedAdmissionError", "message": why });
    let api = Api::<Pod>::namespaced(context.client.clone(), &context.namespace);
    let patch = Patch::Merge(json!({ "status": status }));
    // Where this is lost, the event says it too.
    drop(api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await);
}
