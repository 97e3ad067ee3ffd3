//! The environment on the parts of a cluster: a namespace of its own on a real API server, the shipped manifests, pods
//! that the kubelet stand-in runs, and a real Envoy in front.
//!
//! The environment itself stands in for the Deployment controller ([`rollora_testbed::deployments`]), for the control
//! plane that tells Envoy which pods are Ready ([`rollora_testbed::gateway`]), and for people with their `kubectl`.

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

/// Names of the Deployments in the manifests.
const VLLM_DEPLOYMENT: &str = "vllm-qwen3-32b";
const OPERATOR_DEPLOYMENT: &str = "rollora-operator";
const EXT_PROC_DEPLOYMENT: &str = "rollora-ext-proc";
/// The key of the adapters ConfigMap that holds the user's file.
const USER_CONFIG_KEY: &str = "configmap.yaml";
/// How long a part may take to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The parts of one cluster; they end when it is dropped.
pub struct ClusterEnvironment {
    // The fields are in the order in which the parts end.
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
    /// Starts all parts and waits until the servers and the gateway are ready.
    pub async fn start_with(setup: &Setup, cluster_options: ClusterOptions) -> Result<Self> {
        let mut environment = Self::prepare(setup, cluster_options).await?;
        environment.wait_servers_ready(setup).await?;
        environment.wait_gateway_ready().await?;
        Ok(environment)
    }

    /// Creates all objects and starts to run them, without waiting for readiness: see [`Self::wait_servers_ready`], and
    /// after that [`Self::wait_gateway_ready`].
    pub async fn prepare(setup: &Setup, cluster_options: ClusterOptions) -> Result<Self> {
        let plane = match cluster_options.control_plane {
            Some(plane) => ControlPlaneRef::Own(Box::new(plane)),
            None => ControlPlaneRef::Shared(ControlPlane::shared().await?),
        };
        let folder = tempfile::Builder::new().prefix("rollora-").tempdir().context("no temporary folder")?;
        let namespace = plane.get().create_namespace("e2e").await?;
        let client = plane.get().admin_client().await?;
        let audit = plane.get().audit_log();

        let mut objects = Manifests::render(plane.get(), &cluster_options.manifests, &namespace, folder.path())?;
        overlay::apply_setup(&mut objects, setup, &namespace, cluster_options.hub.as_deref())?;
        (cluster_options.patch_manifests)(&mut objects)?;
        if let Some(picker) = &cluster_options.picker {
            picker.add_objects(&mut objects, &namespace);
        }
        objects.apply(&client).await?;

        let kinds = ServerKinds::new(&setup.servers);
        let mut programs = servers::image_programs(&kinds)?;
        if cluster_options.picker.is_some() {
            programs = EndpointPicker::register_program(programs)?;
        }
        let mut options = KubeletOptions::new(plane.get(), &namespace, programs, folder.path().to_owned()).await?;
        options.projection_delay = cluster_options.projection_delay;
        options.backoff = cluster_options.backoff;
        let deployment_controller = DeploymentController::from_manifests(&objects.objects, &options.node_name)?;
        let kubelet = Kubelet::start(options)?;

        let backends = overlay::envoy_backends(&objects, cluster_options.picker.as_ref())?;
        let gateway = EnvoyProxy::start(
            &backends,
            cluster_options.request_body_mode,
            cluster_options.picker.as_ref(),
            folder.path(),
        )?;
        let watched = Arc::new(WatchedObjects::new(deployment_controller));
        let mut tasks = JoinSet::new();
        watched.watch_all(&mut tasks, &client, &namespace);
        tasks.spawn({
            let (watched, folder) = (Arc::clone(&watched), gateway.folder().to_owned());
            async move { gateway::sync_endpoints(backends, folder, &watched.pods).await }
        });
        let environment = Self {
            gateway,
            audit,
            _tasks: tasks,
            kubelet,
            picker: cluster_options.picker,
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
        environment.write_rollout(&setup.rollout.yaml()).await?;
        Ok(environment)
    }

    /// Returns the containers with this name in the pods of a Deployment.
    pub fn containers(&self, deployment: &str, name: &str) -> Vec<ContainerHandle> {
        let pods = deployments::active_pods(deployment, &self.watched_objects.pods);
        pods.iter().filter_map(|pod| self.kubelet.find_container(&pod.name_any(), name)).collect()
    }

    /// Returns the sidecar container in the pod of a server.
    pub fn sidecar(&self, index: usize) -> Result<ContainerHandle> {
        let pod = self.servers[index].name();
        self.kubelet.find_container(&pod, "rollora-sidecar").with_context(|| format!("no sidecar in {pod}"))
    }

    /// Returns the containers of all ext-proc replicas.
    pub fn ext_procs(&self) -> Vec<ContainerHandle> {
        self.containers(EXT_PROC_DEPLOYMENT, "ext-proc")
    }

    /// Returns the containers of all operator replicas.
    pub fn operators(&self) -> Vec<ContainerHandle> {
        self.containers(OPERATOR_DEPLOYMENT, "operator")
    }

    /// The kubelet stand-in that runs this environment's pods.
    pub fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    /// The API server and etcd, own or shared.
    pub fn control_plane(&self) -> &ControlPlane {
        self.control_plane.get()
    }

    /// Kills the API server with SIGKILL; fails if other environments share it.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.own_control_plane()?.kill_api_server();
        Ok(())
    }

    /// Starts the killed API server again on the data of the same etcd.
    pub async fn start_api_server(&mut self) -> Result<()> {
        self.own_control_plane()?.start_api_server().await
    }

    fn own_control_plane(&mut self) -> Result<&mut ControlPlane> {
        match &mut self.control_plane {
            ControlPlaneRef::Own(plane) => Ok(plane),
            ControlPlaneRef::Shared(_) => {
                anyhow::bail!("other environments share this API server: set `ClusterOptions::control_plane`")
            }
        }
    }

    /// A client with the rights of a cluster admin.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of this environment.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Address of Envoy's admin interface.
    pub fn envoy_admin(&self) -> ListenAddress {
        self.gateway.admin_address()
    }

    /// Address of the endpoint picker's metrics; fails without one.
    pub fn picker_metrics(&self) -> Result<ListenAddress> {
        self.picker.as_ref().map(EndpointPicker::metrics_address).context("there is no endpoint picker")
    }
}

/// Returns the kind of the server with this index; the last kind holds for all further ones, see [`Setup::servers`].
fn server_kind_at(kinds: &[ServerKind], index: usize) -> Option<&ServerKind> {
    kinds.get(index).or(kinds.last())
}
