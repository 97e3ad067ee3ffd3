//! Watched objects of the API server, and the snapshot of a cluster.

use super::{ClusterEnvironment, USER_CONFIG_KEY};
use crate::{
    conditions::{ServerSnapshot, SystemSnapshot},
    harness::Environment as _,
};
use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, Client, Resource, ResourceExt as _};
use rollora_api::{
    names::{DIRECTIVES_KEY, ROUTER_POOL_LABEL, ROUTER_PORT, SIDECAR_PORT},
    rollout::RolloutResource,
};
use rollora_testbed::{
    deployments::DeploymentController,
    guide::{ADAPTERS_CONFIG_MAP, MODEL, POOL},
    http::{self, ListenAddress},
    pods,
    reflector::Reflector,
    server::VllmServer,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};
use tokio::task::JoinSet;

/// Watched copies of the API server's objects.
#[derive(Debug)]
pub(super) struct WatchedObjects {
    pub(super) pods: Reflector<Pod>,
    pub(super) config_maps: Reflector<ConfigMap>,
    pub(super) rollouts: Reflector<RolloutResource>,
    pub(super) deployments: DeploymentController,
}

impl ClusterEnvironment {
    /// Reads the watched objects, and asks all routers, servers and sidecars.
    pub(super) async fn take_snapshot(&self) -> SystemSnapshot {
        let routers = self.routers();
        let rules = routers.iter().map(|router| http::get_json(router, "/rules"));
        let endpoints = self.gateway.endpoints("vllm").await;
        let servers = self.servers.iter().map(|server| self.server_snapshot(server, &endpoints));
        let (rules, servers) = tokio::join!(join_all(rules), join_all(servers));
        let rollout = self.watched_objects.rollouts.get(MODEL).ok_or_else(|| "there is no Rollout".to_owned());
        let map = self.watched_objects.config_maps.get(ADAPTERS_CONFIG_MAP);
        SystemSnapshot {
            status: rollout.map(|rollout| rollout.status.unwrap_or_default()),
            routers: rules
                .into_iter()
                .map(|rules| rules.map_err(|error: anyhow::Error| format!("{error:#}")))
                .collect(),
            servers,
            adapters_file: map.as_ref().and_then(|map| user_config(map).ok()).unwrap_or_default(),
            file_problems: Vec::new(),
        }
    }

    async fn server_snapshot(&self, server: &VllmServer, endpoints: &BTreeSet<IpAddr>) -> ServerSnapshot {
        let name = server.name();
        let pod = self.watched_objects.pods.get(&name);
        let ip = pod.as_ref().and_then(pods::pod_ip);
        let sidecar = async { http::get_json(&ListenAddress::Tcp((ip?, SIDECAR_PORT).into()), "/status").await.ok() };
        let (adapters, sidecar) = tokio::join!(server.loaded_adapters(), sidecar);
        ServerSnapshot {
            ready: ip.is_some_and(|ip| endpoints.contains(&IpAddr::V4(ip))),
            adapters: adapters.map_err(|error| format!("{error:#}")),
            sidecar,
            name,
        }
    }
}

impl WatchedObjects {
    /// Creates empty copies; [`Self::watch_all`] fills them.
    pub(super) fn new(deployments: DeploymentController) -> Self {
        Self {
            pods: Reflector::default(),
            config_maps: Reflector::default(),
            rollouts: Reflector::default(),
            deployments,
        }
    }

    /// Returns the `/rules` addresses of the pool's router pods that `filter` accepts.
    pub(super) fn routers(&self, filter: impl Fn(&Pod) -> bool) -> Vec<ListenAddress> {
        let is_router = |pod: &Pod| pod.labels().get(ROUTER_POOL_LABEL).is_some_and(|pool| pool == POOL);
        let pods = self.pods.all();
        let addresses = pods.iter().filter(|pod| is_router(pod) && filter(pod)).filter_map(pods::pod_ip);
        addresses.map(|ip: Ipv4Addr| ListenAddress::Tcp((ip, ROUTER_PORT).into())).collect()
    }

    pub(super) fn watch_all(self: &Arc<Self>, tasks: &mut JoinSet<()>, client: &Client, namespace: &str) {
        fn api<K>(client: &Client, namespace: &str) -> Api<K>
        where
            K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        {
            Api::namespaced(client.clone(), namespace)
        }
        let (pods, config_maps) = (api(client, namespace), api(client, namespace));
        let rollouts = Api::namespaced(client.clone(), namespace);
        let deployment_pods = pods.clone();
        let watched = Arc::clone(self);
        tasks.spawn(async move { watched.pods.run(pods).await });
        let watched = Arc::clone(self);
        tasks.spawn(async move { watched.config_maps.run(config_maps).await });
        let watched = Arc::clone(self);
        tasks.spawn(async move { watched.rollouts.run(rollouts).await });
        let watched = Arc::clone(self);
        tasks.spawn(async move { watched.deployments.run(deployment_pods, &watched.pods).await });
    }
}

/// Returns the user's text in the adapters ConfigMap.
pub(super) fn user_config(map: &ConfigMap) -> Result<String> {
    let text = map.data.as_ref().and_then(|data| data.get(USER_CONFIG_KEY));
    text.cloned().with_context(|| format!("the ConfigMap has no key {USER_CONFIG_KEY}"))
}

/// Returns the operator's directives for the sidecars, if it wrote any.
pub(super) fn operator_directives(map: &ConfigMap) -> Option<&String> {
    map.data.as_ref()?.get(DIRECTIVES_KEY)
}
