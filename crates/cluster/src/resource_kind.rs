//! The kinds that are spoken of here, as the API server names them.

use kube::core::ApiResource;
use rollora_api::rewrite::RewriteGroup;

/// A kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResourceKind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) name: &'static str,
    pub(crate) plural: &'static str,
}

/// Our own.
pub(crate) const ROLLOUT: ResourceKind =
    ResourceKind { group: "rollora.dev", version: "v1alpha1", name: "Rollout", plural: "rollouts" };
/// The pools.
pub(crate) const POOL: ResourceKind = ResourceKind {
    group: "inference.networking.k8s.io",
    version: "v1",
    name: "InferencePool",
    plural: "inferencepools",
};
/// Pods.
pub(crate) const POD: ResourceKind = ResourceKind { group: "", version: "v1", name: "Pod", plural: "pods" };
/// ConfigMaps.
pub(crate) const CONFIG_MAP: ResourceKind =
    ResourceKind { group: "", version: "v1", name: "ConfigMap", plural: "configmaps" };
/// Leases.
pub(crate) const LEASE: ResourceKind =
    ResourceKind { group: "coordination.k8s.io", version: "v1", name: "Lease", plural: "leases" };
/// Events.
pub(crate) const EVENT: ResourceKind =
    ResourceKind { group: "events.k8s.io", version: "v1", name: "Event", plural: "events" };

/// The rewrites of one group.
pub(crate) const fn rewrite(group: RewriteGroup) -> ResourceKind {
    let group = match group {
        RewriteGroup::Current => "llm-d.ai",
        RewriteGroup::Legacy => "inference.networking.x-k8s.io",
    };
    ResourceKind { group, version: "v1alpha2", name: "InferenceModelRewrite", plural: "inferencemodelrewrites" }
}

impl ResourceKind {
    /// `llm-d.ai/v1alpha2`; `v1` in the core group.
    pub(crate) fn api_version(self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// As roles and people name it: `inferencemodelrewrites.llm-d.ai`.
    pub(crate) fn group_resource(self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The subresource `status`, as roles name it.
    pub(crate) fn status_subresource(self) -> String {
        if self.group.is_empty() {
            format!("{}/status", self.plural)
        } else {
            format!("{}/status.{}", self.plural, self.group)
        }
    }

    pub(crate) fn api_resource(self) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version: self.api_version(),
            kind: self.name.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_roles_and_objects_name_them() {
        assert_eq!(CONFIG_MAP.api_version(), "v1");
        assert_eq!(CONFIG_MAP.group_resource(), "configmaps");
        assert_eq!(ROLLOUT.status_subresource(), "rollouts/status.rollora.dev");
        for group in [RewriteGroup::Current, RewriteGroup::Legacy] {
            assert_eq!(rewrite(group).group, group.name());
            assert_eq!(rewrite(group).api_version(), group.api_version());
        }
    }
}
