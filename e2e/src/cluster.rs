//! The bed on the parts of a cluster: a namespace of its own on a real API server, the manifests that are shipped, pods
//! that the kubelet stand-in runs, and a real Envoy in front.
//!
//! What the bed itself plays: the Deployment controller ([`super::workloads`]), whoever tells Envoy which pods are Ready
//! ([`super::gateway`]), and the people with their `kubectl`.

mod diagnostics;
mod environment_impl;
mod faults;
mod observe;
mod options;
mod overlay;
mod readiness;
mod servers;
mod user_actions;

pub use options::{ClusterOptions, ManifestPatch};

use crate::harness::{Environment as _, Setup};
use anyhow::{Context as _, Result};
use kube::{Client, ResourceExt as _};
use observe::WatchedObjects;
use rollora_testbed::{
    control_plane::{AuditLog, ControlPlane},
    deployments::{self, DeploymentController},
    endpoint_picker::EndpointPicker,
    gateway::{self, EnvoyProxy},
    kubelet::{ContainerHandle, Kubelet, KubeletOptions},
    manifests::Manifests,
};
use rollora_testbed::{
    http::ListenAddress,
    server::{ServerKind, VllmServer},
};
use servers::ServerKinds;
use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// The Deployments of the manifests.
const VLLM_DEPLOYMENT: &str = "vllm-qwen3-32b";
const OPERATOR_DEPLOYMENT: &str = "rollora-operator";
const EXT_PROC_DEPLOYMENT: &str = "rollora-ext-proc";
/// The key of the adapters ConfigMap that is the user's.
const USER_CONFIG_KEY: &str = "configmap.yaml";
/// How long a part may take to appear, on a machine that does much else.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The parts of a cluster.
pub struct ClusterEnvironment {
    // In this order they end.
    gateway: EnvoyProxy,
    audit: AuditLog,
    _tasks: JoinSet<()>,
    kubelet: Kubelet,
    picker: Option<EndpointPicker>,
    servers: Vec<VllmServer>,
    watched_objects: Arc<WatchedObjects>,
    client: Client,
    namespace: String,
    server_kinds: ServerKinds,
    api_key: Option<String>,
    rollout_yaml: Mutex<String>,
    control_plane: ControlPlaneRef,
    folder: TempDir,
}

#[derive(Debug)]
enum ControlPlaneRef {
    Shared(&'static ControlPlane),
    Own(Box<ControlPlane>),
}

impl ControlPlaneRef {
    fn get(&self) -> &ControlPlane {
        match self {
            Self::Shared(plane) => plane,
            Self::Own(plane) => plane,
        }
    }
}

impl fmt::Debug for ClusterEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({} in {})", self.namespace, self.folder.path().display())
    }
}

impl ClusterEnvironment {
    /// Starts everything, of these parts.
    pub async fn start_with(setup: &Setup, parts: ClusterOptions) -> Result<Self> {
        let mut bed = Self::prepare(setup, parts).await?;
        bed.wait_servers_ready(setup).await?;
        bed.wait_gateway_ready().await?;
        Ok(bed)
    }

    /// Creates all objects, and begins to run what they say. Who wants to tell of the rest waits for it:
    /// [`Self::servers_answer`], and then [`Self::gateway_is_ready`].
    pub async fn prepare(setup: &Setup, parts: ClusterOptions) -> Result<Self> {
        let plane = match parts.control_plane {
            Some(plane) => ControlPlaneRef::Own(Box::new(plane)),
            None => ControlPlaneRef::Shared(ControlPlane::shared().await?),
        };
        let folder = tempfile::Builder::new().prefix("rollora-").tempdir().context("no temporary folder")?;
        let namespace = plane.get().create_namespace("bed").await?;
        let client = plane.get().admin_client().await?;
        let audit = plane.get().audit_log();

        let mut objects = Manifests::render(plane.get(), &parts.manifests, &namespace, folder.path())?;
        overlay::apply_setup(&mut objects, setup, &namespace, parts.hub.as_deref())?;
        (parts.patch_manifests)(&mut objects)?;
        if let Some(picker) = &parts.picker {
            picker.add_objects(&mut objects, &namespace);
        }
        objects.apply(&client).await?;

        let kinds = ServerKinds::new(&setup.servers);
        let mut programs = servers::image_programs(&kinds)?;
        if parts.picker.is_some() {
            programs = EndpointPicker::register_program(programs)?;
        }
        let mut options = KubeletOptions::new(plane.get(), &namespace, programs, folder.path().to_owned()).await?;
        options.projection_delay = parts.projection_delay;
        options.backoff = parts.backoff;
        let workloads = DeploymentController::from_manifests(&objects.objects, &options.node_name)?;
        let kubelet = Kubelet::start(options)?;

        let backends = overlay::envoy_backends(&objects, parts.picker.as_ref())?;
        let gateway = EnvoyProxy::start(&backends, parts.request_body_mode, parts.picker.as_ref(), folder.path())?;
        let watched = Arc::new(WatchedObjects::new(workloads));
        let mut tasks = JoinSet::new();
        watched.watch_all(&mut tasks, &client, &namespace);
        tasks.spawn({
            let (watched, folder) = (Arc::clone(&watched), gateway.folder().to_owned());
            async move { gateway::sync_endpoints(backends, folder, &watched.pods).await }
        });
        let bed = Self {
            gateway,
            audit,
            _tasks: tasks,
            kubelet,
            picker: parts.picker,
            servers: Vec::new(),
            watched_objects: watched,
            client,
            namespace,
            server_kinds: kinds,
            api_key: setup.api_key.clone(),
            rollout_yaml: Mutex::default(),
            control_plane: plane,
            folder,
        };
        bed.write_rollout(&setup.rollout.yaml()).await?;
        Ok(bed)
    }

    /// The containers of this name in the pods of a Deployment.
    pub fn containers(&self, deployment: &str, name: &str) -> Vec<ContainerHandle> {
        let pods = deployments::active_pods(deployment, &self.watched_objects.pods);
        pods.iter().filter_map(|pod| self.kubelet.find_container(&pod.name_any(), name)).collect()
    }

    /// The sidecar beside a server.
    pub fn sidecar(&self, index: usize) -> Result<ContainerHandle> {
        let pod = self.servers[index].name();
        self.kubelet.find_container(&pod, "rollora-sidecar").with_context(|| format!("no sidecar in {pod}"))
    }

    /// The replicas of ext-proc.
    pub fn ext_procs(&self) -> Vec<ContainerHandle> {
        self.containers(EXT_PROC_DEPLOYMENT, "ext-proc")
    }

    /// The replicas of the operator.
    pub fn operators(&self) -> Vec<ContainerHandle> {
        self.containers(OPERATOR_DEPLOYMENT, "operator")
    }

    /// The kubelet.
    pub fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    /// The API server.
    pub fn control_plane(&self) -> &ControlPlane {
        self.control_plane.get()
    }

    /// Ends the API server as a power cut does, where it is this bed's own.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.own_control_plane()?.kill_api_server();
        Ok(())
    }

    /// Starts it again on what etcd holds.
    pub async fn start_api_server(&mut self) -> Result<()> {
        self.own_control_plane()?.start_api_server().await
    }

    fn own_control_plane(&mut self) -> Result<&mut ControlPlane> {
        match &mut self.control_plane {
            ControlPlaneRef::Own(plane) => Ok(plane),
            ControlPlaneRef::Shared(_) => {
                anyhow::bail!("other beds need this API server: give this one its own in Parts")
            }
        }
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of the bed.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where Envoy says what it does.
    pub fn envoy_admin(&self) -> ListenAddress {
        self.gateway.admin_address()
    }

    /// Where the endpoint picker has its metrics.
    pub fn picker_metrics(&self) -> Result<ListenAddress> {
        self.picker.as_ref().map(EndpointPicker::metrics_address).context("there is no endpoint picker")
    }
}

/// Which kind of server a bed has at a place; see [`Setup::servers`].
fn server_kind_at(kinds: &[ServerKind], index: usize) -> Option<&ServerKind> {
    kinds.get(index).or(kinds.last())
}
