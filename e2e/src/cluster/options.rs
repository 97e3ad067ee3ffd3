//! Options of the cluster environment.

use anyhow::Result;
use rollora_testbed::{
    control_plane::ControlPlane, endpoint_picker::EndpointPicker, gateway::RequestBodyMode, kubelet::RestartBackoff,
    manifests::Manifests,
};
use std::{fmt, time::Duration};

/// How to build a cluster environment, in addition to its [`Setup`](crate::harness::Setup).
pub struct ClusterOptions {
    /// A control plane of its own, with everything installed that the scenario needs; `None` takes the shared one.
    pub control_plane: Option<ControlPlane>,
    /// Folders of `manifests/` to apply.
    pub manifests: Vec<&'static str>,
    /// How long the kubelet takes to bring a change of the ConfigMap to the pods that mount it.
    pub projection_delay: Duration,
    /// When the kubelet restarts a container that ended by itself.
    pub backoff: RestartBackoff,
    /// Changes the manifests before they are applied, as a user's overlay would.
    pub patch_manifests: ManifestPatch,
    /// How Envoy sends request bodies to ext-proc.
    pub request_body_mode: RequestBodyMode,
    /// Upstream's endpoint picker; `None` routes by ext-proc alone.
    pub picker: Option<EndpointPicker>,
    /// Address of a hub that the sidecars fetch from. `None` makes servers load from the hub by name: no test reaches
    /// the internet.
    pub hub: Option<String>,
}

/// Changes the rendered manifests in place.
pub type ManifestPatch = Box<dyn Fn(&mut Manifests) -> Result<()> + Send + Sync>;

/// An operator for the namespace, two replicas of ext-proc, and sidecars that read the mounted ConfigMap without a
/// delay.
impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            control_plane: None,
            manifests: vec!["operator-one-namespace", "ext-proc", "vllm"],
            projection_delay: Duration::ZERO,
            backoff: RestartBackoff::default(),
            patch_manifests: Box::new(|_| Ok(())),
            request_body_mode: RequestBodyMode::default(),
            picker: None,
            hub: None,
        }
    }
}

impl fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parts({:?}, own control plane: {})", self.manifests, self.control_plane.is_some())
    }
}
