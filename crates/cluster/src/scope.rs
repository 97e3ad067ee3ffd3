//! Namespaces that a program watches.

use crate::resource_kind::ResourceKind;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, core::DynamicObject};

/// A single namespace, or the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Only this namespace: a Role is sufficient.
    Namespace(String),
    /// All namespaces of the cluster: needs a ClusterRole.
    All,
}

impl Scope {
    /// Returns the namespace, or `None` for all of them.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Namespace(namespace) => Some(namespace),
            Self::All => None,
        }
    }

    /// Returns an API handle for objects of a typed kind in this scope.
    pub(crate) fn api<K>(&self, client: Client) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match self {
            Self::Namespace(namespace) => Api::namespaced(client, namespace),
            Self::All => Api::all(client),
        }
    }

    /// Returns an API handle for untyped objects of a kind in this scope.
    pub(crate) fn dynamic_api(&self, client: Client, kind: ResourceKind) -> Api<DynamicObject> {
        let resource = kind.api_resource();
        match self {
            Self::Namespace(namespace) => Api::namespaced_with(client, namespace, &resource),
            Self::All => Api::all_with(client, &resource),
        }
    }
}
