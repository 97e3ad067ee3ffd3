//! A stand-in for the kubelet that runs the pods of its node as processes of this machine.
//!
//! Behavior that matches a kubelet:
//! - It watches the pods of its node and gives each an address. It writes their status after every change: phase,
//!   conditions with transition times, and containers with ids, restart counts and termination states.
//! - Init containers run one after the other; a native sidecar (`restartPolicy: Always`) keeps running, and the next
//!   one waits until it has started. Containers that exit are restarted as the pod's `restartPolicy` says, immediately
//!   the first time and then after 10 s, 20 s, and so on up to 5 minutes.
//! - Startup, readiness and liveness probes (`httpGet`, `tcpSocket`, `exec`) with their delays, periods of at least a
//!   second, timeouts and thresholds.
//! - `configMap`, `secret`, `downwardAPI`, `projected` and `emptyDir` volumes. Files are updated together by swapping
//!   `..data`, some time after their source. A key that `items` does not name is left out; a missing source that is not
//!   optional keeps the pod from starting.
//! - Environment variables from values, pod fields, and keys of ConfigMaps and Secrets; `$(VAR)` is expanded in them,
//!   in commands and in arguments.
//! - Tokens of the pod's service account, bound to the pod, valid for ten minutes and renewed before they expire.
//! - A deleted pod runs its `preStop` hooks (`sleep`, `exec`) and gets SIGTERM, then SIGKILL when its grace period is
//!   over. Sidecars are stopped after the containers, the last one first. Then the object is deleted.
//!
//! Differences from a kubelet:
//! - There are no images, no isolation and no resource limits. An image is a name for a program of this machine
//!   ([`ImagePrograms`]). Processes see the machine's files: a path below a `mountPath` in a command, an argument or a
//!   variable is replaced by the pod's folder for that volume; paths in a program's own files are not.
//! - There are no network namespaces: a pod's address is one of 127.0.0.0/8 (Linux), and its programs must listen on
//!   that address only. Nothing keeps them from listening elsewhere.
//! - A kubelet mounts a token at `/var/run/secrets`; here the containers get `KUBECONFIG` instead, which refers to the
//!   token's file. In-cluster configuration finds nothing.
//! - There are no gRPC probes, `postStart` hooks, `subPath`, resources, host network, ephemeral containers, or init
//!   containers that run again. A pod that asks for a feature that would change its behavior is rejected with a
//!   message.
//! - Probes stop when a pod begins to terminate. Recovery after a restart of the kubelet is not implemented.
//! - It neither registers a node nor schedules: the creator of a pod sets `nodeName`.

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

/// Maximum time that [`Kubelet::container`] waits for a container to appear.
const CONTAINER_TIMEOUT: Duration = Duration::from_mins(2);

/// Configuration of a kubelet.
#[derive(Clone)]
pub struct KubeletOptions {
    /// Client of the API server with all rights.
    pub client: Client,
    /// URL of the API server, as pods use it.
    pub api_server: String,
    /// File with the CA certificates of the API server.
    pub ca_certificate: PathBuf,
    /// Namespace whose pods are run.
    pub namespace: String,
    /// Name of the node whose pods are run.
    pub node_name: String,
    /// Programs that run in place of images.
    pub programs: ImagePrograms,
    /// Folder for the volumes and the logs.
    pub folder: PathBuf,
    /// Delay between a change of a ConfigMap or a Secret and the update of the files.
    pub projection_delay: Duration,
    /// Age at which a token is replaced.
    pub token_renewal_interval: Duration,
    /// Delays before a container is restarted.
    pub backoff: RestartBackoff,
}

impl KubeletOptions {
    /// Returns options for a node that updates files without delay and replaces tokens after eight minutes.
    pub async fn new(plane: &ControlPlane, namespace: &str, programs: ImagePrograms, folder: PathBuf) -> Result<Self> {
        Ok(Self {
            client: plane.admin_client().await?,
            api_server: plane.url(),
            ca_certificate: plane.ca_certificate(),
            namespace: namespace.to_owned(),
            node_name: "testbed".to_owned(),
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
        write!(f, "KubeletOptions({node} of {namespace} at {api_server})")
    }
}

/// State that all pods of the node share.
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
        write!(f, "NodeContext({} of {})", self.folder.display(), self.namespace)
    }
}

impl NodeContext {
    /// Waits for the projection delay. If the delay is shortened meanwhile, the shorter one applies immediately.
    async fn wait_projection_delay(&self) {
        let begin = crate::clock::now();
        let mut delay = self.projection_delay.subscribe();
        loop {
            let remaining = delay.borrow_and_update().saturating_sub(begin.elapsed());
            if remaining.is_zero() {
                return;
            }
            // An error means that the testbed ends.
            drop(tokio::time::timeout(remaining, delay.changed()).await);
        }
    }
}

/// The UID and the containers of every pod, by the pod's name. The UID distinguishes pods that reuse a name.
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
        if pods.get(name).is_some_and(|(registered_uid, _)| registered_uid == uid) {
            pods.remove(name);
        }
    }
}

/// The kubelet stand-in. All processes that it started end when it is dropped.
#[derive(Debug)]
pub struct Kubelet {
    context: Arc<NodeContext>,
    registry: Arc<PodRegistry>,
    tasks: JoinSet<()>,
}

impl Kubelet {
    /// Starts to run the pods of the node.
    pub fn start(options: KubeletOptions) -> Result<Self> {
        let server = token::ApiServerInfo::new(&options.api_server, &options.ca_certificate)?;
        let client = options.client;
        let (recorder, publisher) = events::channel();
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
            recorder,
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

    /// Sets the delay between a change of a ConfigMap or a Secret and the update of the files.
    pub fn set_projection_delay(&self, delay: Duration) {
        self.context.projection_delay.send_replace(delay);
    }

    /// Returns a container, and waits up to two minutes for the kubelet to accept its pod.
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
        found.with_context(|| format!("the kubelet has no container {name} of a pod {pod} after {CONTAINER_TIMEOUT:?}"))
    }

    /// Returns a container, or `None` if the kubelet does not have its pod.
    pub fn find_container(&self, pod: &str, name: &str) -> Option<ContainerHandle> {
        let pods = self.registry.pods();
        pods.get(pod)?.1.iter().find(|container| container.name() == name).cloned()
    }

    /// Returns all containers of all pods.
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

/// Starts a worker for every pod of the node, and signals it when the pod must end. Never returns.
async fn watch_pods(context: Arc<NodeContext>, registry: Arc<PodRegistry>, node: String) {
    let api = Api::<Pod>::namespaced(context.client.clone(), &context.namespace);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut workers = JoinSet::new();
    let mut desired_states: BTreeMap<String, watch::Sender<DesiredPodState>> = BTreeMap::new();
    let mut listed = BTreeSet::new();
    loop {
        // The watch fails while the API server is unavailable, and is retried.
        let Ok(Some(event)) = events.try_next().await else { continue };
        while workers.try_join_next().is_some() {}
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitDone => {
                for (uid, desired) in &desired_states {
                    if !listed.contains(uid) {
                        desired.send_if_modified(mark_deleted);
                    }
                }
            }
            watcher::Event::Delete(pod) => {
                if let Some(desired) = desired_states.remove(&pod.uid().unwrap_or_default()) {
                    desired.send_if_modified(mark_deleted);
                    // The worker holds the receiver until it is done.
                    workers.spawn(async move { desired.closed().await });
                }
            }
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                let uid = pod.uid().unwrap_or_default();
                listed.insert(uid.clone());
                let state = desired_state(&pod);
                if let Some(desired) = desired_states.get(&uid) {
                    desired.send_if_modified(|desired| std::mem::replace(desired, state) != state);
                } else if !is_terminal(&pod)
                    && let Some(desired) = start_worker(&context, &registry, &mut workers, pod, state)
                {
                    desired_states.insert(uid, desired);
                }
            }
        }
    }
}

fn mark_deleted(desired: &mut DesiredPodState) -> bool {
    std::mem::replace(desired, DesiredPodState::Deleted) != DesiredPodState::Deleted
}

fn desired_state(pod: &Pod) -> DesiredPodState {
    if pod.metadata.deletion_timestamp.is_none() {
        return DesiredPodState::Running;
    }
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    DesiredPodState::Terminating(Duration::from_secs(grace.unsigned_abs()))
}

/// Returns whether a pod has completed, failed or been rejected.
fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn start_worker(
    context: &Arc<NodeContext>,
    registry: &Arc<PodRegistry>,
    workers: &mut JoinSet<()>,
    pod: Pod,
    desired: DesiredPodState,
) -> Option<watch::Sender<DesiredPodState>> {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    match PodWorker::new(context, pod.clone()) {
        Ok(worker) => {
            let (sender, receiver) = watch::channel(desired);
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

/// Marks a pod as failed that cannot run here.
async fn reject_pod(context: Arc<NodeContext>, pod: Pod, message: String) {
    context.recorder.warning(&pod, "UnexpectedAdmissionError", message.clone());
    let status = json!({ "phase": "Failed", "reason": "UnexpectedAdmissionError", "message": message });
    let api = Api::<Pod>::namespaced(context.client.clone(), &context.namespace);
    let patch = Patch::Merge(json!({ "status": status }));
    // If this write fails, the event still carries the message.
    drop(api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await);
}
