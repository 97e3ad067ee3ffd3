//! Kubernetes kinds that this crate uses, with their groups and plural names.

use kube::core::ApiResource;
use rollora_api::rewrite::RewriteGroup;

/// Group, version and names of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResourceKind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) name: &'static str,
    pub(crate) plural: &'static str,
}

/// Rollora's own custom resource.
pub(crate) const ROLLOUT: ResourceKind =
    ResourceKind { group: "rollora.dev", version: "v1alpha1", name: "Rollout", plural: "rollouts" };
/// Pool of model servers, from the Gateway API inference extension.
pub(crate) const POOL: ResourceKind = ResourceKind {
    group: "inference.networking.k8s.io",
    version: "v1",
    name: "InferencePool",
    plural: "inferencepools",
};

pub(crate) const POD: ResourceKind = ResourceKind { group: "", version: "v1", name: "Pod", plural: "pods" };

pub(crate) const CONFIG_MAP: ResourceKind =
    ResourceKind { group: "", version: "v1", name: "ConfigMap", plural: "configmaps" };

pub(crate) const LEASE: ResourceKind =
    ResourceKind { group: "coordination.k8s.io", version: "v1", name: "Lease", plural: "leases" };

pub(crate) const EVENT: ResourceKind =
    ResourceKind { group: "events.k8s.io", version: "v1", name: "Event", plural: "events" };

/// Returns the kind of the rewrites of one group.
pub(crate) const fn rewrite(group: RewriteGroup) -> ResourceKind {
    let group = match group {
        RewriteGroup::Current => "llm-d.ai",
        RewriteGroup::Legacy => "inference.networking.x-k8s.io",
    };
    ResourceKind { group, version: "v1alpha2", name: "InferenceModelRewrite", plural: "inferencemodelrewrites" }
}

impl ResourceKind {
    /// Returns for example `llm-d.ai/v1alpha2`, or `v1` in the core group.
    pub(crate) fn api_version(self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Returns the name that roles and error messages use: `inferencemodelrewrites.llm-d.ai`.
    pub(crate) fn group_resource(self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Returns the subresource `status` as roles name it: `rollouts/status.rollora.dev`.
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
    fn kinds_are_named_as_in_roles_and_objects() {
        assert_eq!(CONFIG_MAP.api_version(), "v1");
        assert_eq!(CONFIG_MAP.group_resource(), "configmaps");
        assert_eq!(ROLLOUT.status_subresource(), "rollouts/status.rollora.dev");
        for group in [RewriteGroup::Current, RewriteGroup::Legacy] {
            assert_eq!(rewrite(group).group, group.name());
            assert_eq!(rewrite(group).api_version(), group.api_version());
        }
    }
}
