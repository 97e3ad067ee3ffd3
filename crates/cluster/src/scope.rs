//! Which namespaces are looked at.

use crate::resource_kind::ResourceKind;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, core::DynamicObject};

/// One namespace, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Only this one: a Role suffices.
    Namespace(String),
    /// All of them.
    All,
}

impl Scope {
    /// The namespace, where it is one.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Namespace(namespace) => Some(namespace),
            Self::All => None,
        }
    }

    /// Objects of a type there.
    pub(crate) fn api<K>(&self, client: Client) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match self {
            Self::Namespace(namespace) => Api::namespaced(client, namespace),
            Self::All => Api::all(client),
        }
    }

    /// Objects of a kind there.
    pub(crate) fn dynamic_api(&self, client: Client, kind: ResourceKind) -> Api<DynamicObject> {
        let resource = kind.api_resource();
        match self {
            Self::Namespace(namespace) => Api::namespaced_with(client, namespace, &resource),
            Self::All => Api::all_with(client, &resource),
        }
    }
}
