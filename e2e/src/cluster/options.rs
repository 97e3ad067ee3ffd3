//! What a bed is made of, besides what its [`Setup`](crate::bed::Setup) says.

use anyhow::Result;
use rollora_testbed::{
    control_plane::ControlPlane, endpoint_picker::EndpointPicker, gateway::RequestBodyMode, kubelet::RestartBackoff,
    manifests::Manifests,
};
use std::{fmt, time::Duration};

/// What a bed is made of, besides what its [`Setup`] says.
pub struct ClusterOptions {
    /// Its own control plane, with everything installed that it needs; else the shared one.
    pub control_plane: Option<ControlPlane>,
    /// Which folders of `manifests/`.
    pub manifests: Vec<&'static str>,
    /// How long after a change of the ConfigMap a kubelet brings it to the pods that mount it.
    pub projection_delay: Duration,
    /// When the kubelet starts again what ended by itself.
    pub backoff: RestartBackoff,
    /// What a user's overlay would change in the manifests.
    pub patch_manifests: ManifestPatch,
    /// How Envoy hands bodies to ext-proc.
    pub request_body_mode: RequestBodyMode,
    /// Upstream's endpoint picker.
    pub picker: Option<EndpointPicker>,
    /// The address of a hub that the sidecars fetch from. Without one servers are given the hub's names: no test
    /// reaches the internet.
    pub hub: Option<String>,
}

/// Changes manifests.
pub type ManifestPatch = Box<dyn Fn(&mut Manifests) -> Result<()> + Send + Sync>;

/// An operator for the namespace, two replicas of ext-proc, sidecars that read the mounted ConfigMap, at once.
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
