//! One question to one server or router, and what is made of what it says.

use crate::{
    known_sidecars::KnownSidecars,
    pod_discovery::{self, SidecarAddr},
    response_cache::{CachedResponse, ResponseCache},
};
use rollora_api::{
    names::AdapterId,
    router_report::RulesReport,
    sidecar_status::{AdapterState, AdapterStatus, NO_SIDECAR, ReadinessStatus, ServerIdentity, SidecarStatus},
};
use rollora_cluster::{HttpClient, HttpClientError, Pod};
use serde::Deserialize;
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tokio::time::Instant;

/// The three questions there are, and what pods answered to them.
#[derive(Debug, Default)]
pub(crate) struct PodClient {
    http: HttpClient,
    status_cache: ResponseCache<SidecarStatus>,
    models_cache: ResponseCache<SidecarStatus>,
    rules_cache: ResponseCache<RulesReport>,
    known_sidecars: KnownSidecars,
}

/// What a pod said and when it was asked for it; nobody was asked where it is known without that.
pub(crate) type TimedResult<T> = (Option<Instant>, Result<Arc<T>, String>);

impl PodClient {
    /// Forgets what nobody asks for any more.
    pub(crate) fn evict_expired(&self) {
        self.status_cache.evict_expired();
        self.models_cache.evict_expired();
        self.rules_cache.evict_expired();
    }

    /// What the sidecar of this server says.
    pub(crate) async fn sidecar_status(&self, whom: &SidecarAddr<'_>) -> TimedResult<SidecarStatus> {
        match &whom.sidecar_port {
            Ok(sidecar) => timed_result(self.poll_sidecar(whom, *sidecar).await),
            Err(why) => (None, Err(why.clone())),
        }
    }

    /// The same; where there is no sidecar, what vLLM itself lists. `there` are the UIDs of all pods.
    pub(crate) async fn status_or_models(
        &self,
        whom: &SidecarAddr<'_>,
        there: impl FnOnce() -> HashSet<String>,
    ) -> TimedResult<SidecarStatus> {
        let (uid, sidecar) = match &whom.sidecar_port {
            Ok(sidecar) => (whom.pod.uid.as_str(), *sidecar),
            Err(why) => return (None, Err(why.clone())),
        };
        let answer = self.poll_sidecar(whom, sidecar).await;
        // A pod that says that it has a sidecar has one.
        let Some(port) = whom.server_port.filter(|_| !whom.pod.has_sidecar) else { return timed_result(answer) };
        match &answer.result {
            Ok(_) => self.known_sidecars.insert(uid, sidecar, there),
            Err(HttpClientError::Unreachable(_)) if !self.known_sidecars.contains(uid, sidecar) => {
                return self.poll_models(whom, port).await;
            }
            Err(_) => {}
        }
        timed_result(answer)
    }

    /// By what a router routes.
    pub(crate) async fn router_rules(&self, pod: &Pod, ip: IpAddr) -> TimedResult<RulesReport> {
        let port = match pod_discovery::router_port(pod) {
            Ok(port) => port,
            Err(why) => return (None, Err(why)),
        };
        timed_result(self.rules_cache.get(&pod.uid, port, |again| self.http.get(ip, port, "/rules", again)).await)
    }

    async fn poll_sidecar(&self, whom: &SidecarAddr<'_>, port: u16) -> CachedResponse<SidecarStatus> {
        let ask = |again| async move { self.http.get(whom.ip, port, "/status", again).await.map(strip_unused_fields) };
        self.status_cache.get(&whom.pod.uid, port, ask).await
    }

    async fn poll_models(&self, whom: &SidecarAddr<'_>, port: u16) -> TimedResult<SidecarStatus> {
        let &SidecarAddr { pod, ip, .. } = whom;
        let list = |again| async move {
            let listed = self.http.get::<VllmModelList>(ip, port, "/v1/models", again).await;
            listed.map(|all| all.to_status(pod, ip, port))
        };
        timed_result(self.models_cache.get(&pod.uid, port, list).await)
    }
}

/// Without what nothing is decided by: a pool may have hundreds of servers, each with hundreds of adapters.
fn strip_unused_fields(mut status: SidecarStatus) -> SidecarStatus {
    for adapter in &mut status.adapters {
        (adapter.source, adapter.root, adapter.fetch) = (None, None, None);
    }
    status.adapters.shrink_to_fit();
    status
}

fn timed_result<T>(answer: CachedResponse<T>) -> TimedResult<T> {
    (Some(answer.requested_at), answer.result.map_err(|error| error.to_string()))
}

/// What vLLM answers to `GET /v1/models`, as far as it is needed.
#[derive(Debug, Deserialize)]
struct VllmModelList {
    data: Vec<VllmModel>,
}

#[derive(Debug, Deserialize)]
struct VllmModel {
    id: String,
    /// The base model of an adapter.
    #[serde(default)]
    parent: Option<String>,
}

impl VllmModelList {
    /// The same as a sidecar would say it, if it only saw what is listed.
    fn to_status(&self, pod: &Pod, ip: IpAddr, port: u16) -> SidecarStatus {
        let (adapters, base): (Vec<&VllmModel>, Vec<&VllmModel>) =
            self.data.iter().partition(|model| model.parent.is_some());
        let adapters = adapters.iter().filter_map(|model| AdapterId::new(model.id.clone()).ok());
        let adapter = |id| AdapterStatus::new(id, AdapterState::Loaded);
        SidecarStatus {
            server: Some(ServerIdentity {
                endpoint: format!("http://{}", SocketAddr::new(ip, port)),
                start: pod.container_ids.clone(),
            }),
            readiness: ReadinessStatus {
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
    use crate::pod_discovery::tests::pod;
    use axum::{Router, routing::get};
    use rollora_operator::ports::RESPONSE_TTL;
    use serde_json::{Value, json};
    use tokio::{net::TcpListener, task::JoinSet};

    #[test]
    fn what_vllm_lists_counts_as_registered_and_never_as_proven() {
        let text = r#"{"object":"list","data":[
            {"id":"base","object":"model","parent":null},
            {"id":"v1","object":"model","root":"/a/v1","parent":"base"}]}"#;
        let models: VllmModelList = serde_json::from_str(text).unwrap();
        let status = models.to_status(&pod(None), "10.0.0.7".parse().unwrap(), 8000);
        let v1 = AdapterId::new("v1").unwrap();
        assert!(status.is_resident(&v1) && !status.is_verified(&v1));
        assert_eq!(status.base_models, ["base"]);
        assert_eq!(status.server.unwrap().start, "c://1");
    }

    #[test]
    fn what_nothing_is_decided_by_is_not_kept() {
        let text = r#"{"id":"v1","state":"Verified","source":"org/a","root":"/a","attempts":1,
            "lastError":{"reason":"Timeout","message":"it took long"},"lastUsed":"2026-01-01T00:00:00Z"}"#;
        let adapter: AdapterStatus = serde_json::from_str(text).unwrap();
        let status = strip_unused_fields(SidecarStatus { adapters: vec![adapter.clone()], ..SidecarStatus::default() });
        assert_eq!(status.adapters, [AdapterStatus { source: None, root: None, fetch: None, ..adapter }]);
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Answers this until the task is ended.
    async fn serve_json(path: &'static str, answer: Value) -> (u16, JoinSet<()>) {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new().route(path, get(move || async move { answer.to_string() }));
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, app).await.unwrap() });
        (port, task)
    }

    /// Until another question is asked.
    async fn expire_responses() {
        tokio::time::pause();
        tokio::time::advance(RESPONSE_TTL).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn a_sidecar_that_is_silent_is_not_one_that_is_not_there() {
        let (pod, questions) = (pod(None), PodClient::default());
        let (port, _vllm) = serve_json("/v1/models", json!({ "data": [{ "id": "v1", "parent": "base" }] })).await;
        let status = serde_json::to_value(SidecarStatus::default()).unwrap();
        let (sidecar_port, mut sidecar) = serve_json("/status", status).await;
        let whom = SidecarAddr {
            pod: &pod,
            ip: HERE,
            name: String::new(),
            server_port: Some(port),
            sidecar_port: Ok(sidecar_port),
        };
        let ask = async || questions.status_or_models(&whom, HashSet::new).await.1;
        assert!(ask().await.unwrap().adapters.is_empty(), "the sidecar has none");
        sidecar.shutdown().await;
        expire_responses().await;
        let silence = ask().await.unwrap_err();
        assert!(silence.contains(&format!(":{sidecar_port}/status cannot be asked")), "{silence}");

        let other = Pod { uid: "other".to_owned(), ..pod.clone() };
        let whom = SidecarAddr { pod: &other, name: String::new(), sidecar_port: Ok(sidecar_port), ..whom };
        let listed = questions.status_or_models(&whom, HashSet::new).await.1.unwrap();
        assert_eq!(listed.adapters.len(), 1, "it never had a sidecar");
        assert!(questions.sidecar_status(&whom).await.1.is_err(), "and where one is needed, that is an error");
        let other = Pod { uid: "another".to_owned(), has_sidecar: true, ..pod.clone() };
        let whom = SidecarAddr { pod: &other, name: String::new(), sidecar_port: Ok(sidecar_port), ..whom };
        assert!(questions.status_or_models(&whom, HashSet::new).await.1.is_err(), "it says that it has one");
    }
}
