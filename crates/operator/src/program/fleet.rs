//! The pods of a cluster, asked what they hold and by what they route: all at once, each with a time limit.

use crate::{
    answers::Answers,
    store::{beside, name_of, read_error},
};
use futures_util::future::join_all;
use rollora_api::{
    names::{AdapterId, ModelName, ROUTER_PORT, SIDECAR_PORT},
    rewrite::PoolRef,
    rollout::spec::ResidencyProof,
    router_report::RulesReport,
    sidecar_status::{AdapterState, AdapterStatus, Readiness, ServerIdentity, SidecarStatus},
};
use rollora_cluster::{AskError, Asker, Documents, Pod};
use rollora_operator::ports::{Fleet, ReadError, RolloutKey, Router, Server};
use serde::Deserialize;
use std::{net::IpAddr, sync::Arc};

/// The pods.
#[derive(Debug)]
pub(crate) struct ClusterFleet {
    documents: Documents,
    asker: Asker,
    statuses: Answers<SidecarStatus>,
    models: Answers<Models>,
    rules: Answers<RulesReport>,
}

impl ClusterFleet {
    pub(crate) fn new(documents: Documents) -> Self {
        Self {
            documents,
            asker: Asker::default(),
            statuses: Answers::default(),
            models: Answers::default(),
            rules: Answers::default(),
        }
    }
}

impl Fleet for ClusterFleet {
    async fn servers(&self, key: &RolloutKey, pool: &PoolRef) -> Result<Vec<Server>, ReadError> {
        let (pool, pods) = self.documents.pool(&beside(key, &pool.name)).await.map_err(read_error)?;
        let rollout = self.documents.rollout(&name_of(key)).await.map_err(read_error)?;
        let registered = rollout.is_some_and(|rollout| rollout.value.spec.residency == ResidencyProof::Registered);
        let ports = pool.ports.as_slice();
        let servers = pods
            .iter()
            .filter(|pod| !pod.ended)
            .flat_map(|pod| ports.iter().enumerate().map(move |(index, port)| (pod, index, *port, ports.len())));
        let asked = servers.map(|(pod, index, port, ports)| async move {
            let name = if ports > 1 { format!("{}:{port}", pod.name) } else { pod.name.clone() };
            let status = self.status(pod, index, port, registered).await;
            Server { name, uid: pod.uid.clone(), ready: pod.ready, status }
        });
        Ok(join_all(asked).await)
    }

    async fn routers(&self, key: &RolloutKey, pool: &PoolRef, _: &ModelName) -> Result<Vec<Router>, ReadError> {
        let pods = self.documents.routers(&beside(key, &pool.name)).await.map_err(read_error)?;
        let asked = pods
            .iter()
            .filter(|pod| !pod.ended)
            .map(|pod| async move { Router { name: pod.name.clone(), report: self.rules(pod).await } });
        Ok(join_all(asked).await)
    }
}

impl ClusterFleet {
    /// What the sidecar of this server says; where there is none and that suffices, what vLLM itself lists.
    async fn status(&self, pod: &Pod, index: usize, port: u16, registered: bool) -> Result<SidecarStatus, String> {
        let ip = address(pod)?;
        let sidecar = sidecar_port(pod, index)?;
        let ask = |again| self.asker.get(ip, sidecar, "/status", again);
        match self.statuses.get(&pod.uid, sidecar, ask).await {
            Err(AskError::Unreachable(_)) if registered => {
                let ask = |again| self.asker.get(ip, port, "/v1/models", again);
                let models = self.models.get(&pod.uid, port, ask).await;
                models.map(|models| models.as_status(pod, ip, port)).map_err(|error| error.to_string())
            }
            asked => asked.map(Arc::unwrap_or_clone).map_err(|error| error.to_string()),
        }
    }

    async fn rules(&self, pod: &Pod) -> Result<RulesReport, String> {
        let ip = address(pod)?;
        let port = pod.router_port.clone().unwrap_or(Ok(ROUTER_PORT))?;
        let rules = self.rules.get(&pod.uid, port, |again| self.asker.get(ip, port, "/rules", again)).await;
        rules.map(Arc::unwrap_or_clone).map_err(|error| error.to_string())
    }
}

fn address(pod: &Pod) -> Result<IpAddr, String> {
    pod.ip.ok_or_else(|| "the pod has no address yet".to_owned())
}

/// The port of the sidecar of the server with this place among the pod's target ports.
fn sidecar_port(pod: &Pod, index: usize) -> Result<u16, String> {
    match &pod.sidecar_ports {
        None if index == 0 => Ok(SIDECAR_PORT),
        Some(Ok(ports)) if index < ports.len() => Ok(ports[index]),
        Some(Err(problem)) => Err(problem.clone()),
        _ => Err(format!(
            "the pool has several target ports: name the ports of their sidecars, in the same order, in the annotation \
             {} of the pod",
            rollora_api::names::SIDECAR_PORT_ANNOTATION
        )),
    }
}

/// What vLLM answers to `GET /v1/models`, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Debug, Deserialize)]
struct Model {
    id: String,
    /// The base model of an adapter.
    #[serde(default)]
    parent: Option<String>,
}

/// Why a server without a sidecar is said to be ready.
const NO_SIDECAR: &str = "NoSidecar";

impl Models {
    /// The same as a sidecar would say it, if it only saw what is listed.
    fn as_status(&self, pod: &Pod, ip: IpAddr, port: u16) -> SidecarStatus {
        let (adapters, base): (Vec<&Model>, Vec<&Model>) = self.data.iter().partition(|model| model.parent.is_some());
        let adapters = adapters.iter().filter_map(|model| AdapterId::new(model.id.clone()).ok());
        let adapter = |id| AdapterStatus::new(id, AdapterState::Loaded);
        SidecarStatus {
            server: Some(ServerIdentity {
                endpoint: format!("http://{}", std::net::SocketAddr::new(ip, port)),
                start: pod.containers.join(","),
            }),
            readiness: Readiness {
                ready: pod.ready,
                reason: NO_SIDECAR.to_owned(),
                message: "no sidecar answers; vLLM lists what it holds".to_owned(),
            },
            base_models: base.iter().map(|model| model.id.clone()).collect(),
            adapters: adapters.map(adapter).collect(),
            ..SidecarStatus::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(sidecar_ports: Option<Result<Vec<u16>, String>>) -> Pod {
        Pod {
            name: "vllm-0".to_owned(),
            uid: "u".to_owned(),
            ip: None,
            ready: true,
            ended: false,
            containers: vec!["c://1".to_owned()],
            router_for: None,
            sidecar_ports,
            router_port: None,
        }
    }

    #[test]
    fn each_server_of_a_pod_has_a_sidecar_of_its_own() {
        assert_eq!(sidecar_port(&pod(None), 0), Ok(SIDECAR_PORT));
        assert!(sidecar_port(&pod(None), 1).unwrap_err().contains("several target ports"));
        let two = pod(Some(Ok(vec![8081, 8082])));
        assert_eq!((sidecar_port(&two, 0), sidecar_port(&two, 1)), (Ok(8081), Ok(8082)));
        assert!(sidecar_port(&two, 2).is_err());
        assert_eq!(sidecar_port(&pod(Some(Err("bad".to_owned()))), 0), Err("bad".to_owned()));
    }

    #[test]
    fn what_vllm_lists_counts_as_registered_and_never_as_proven() {
        let text = r#"{"object":"list","data":[
            {"id":"base","object":"model","parent":null},
            {"id":"v1","object":"model","root":"/a/v1","parent":"base"}]}"#;
        let models: Models = serde_json::from_str(text).unwrap();
        let status = models.as_status(&pod(None), "10.0.0.7".parse().unwrap(), 8000);
        let v1 = AdapterId::new("v1").unwrap();
        assert!(status.is_resident(&v1) && !status.is_verified(&v1));
        assert_eq!(status.base_models, ["base"]);
        assert_eq!(status.server.unwrap().start, "c://1");
    }
}
