//! Requests to sidecars, vLLM servers and routers, with cached responses.

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

/// Client for the three endpoints of pods that the operator polls, with a response cache for each.
#[derive(Debug, Default)]
pub(crate) struct PodClient {
    http: HttpClient,
    status_cache: ResponseCache<SidecarStatus>,
    models_cache: ResponseCache<SidecarStatus>,
    rules_cache: ResponseCache<RulesReport>,
    known_sidecars: KnownSidecars,
}

/// Response of a pod and when it was requested; no time if the result is known without a request.
pub(crate) type TimedResult<T> = (Option<Instant>, Result<Arc<T>, String>);

impl PodClient {
    /// Evicts responses that are not requested anymore.
    pub(crate) fn evict_expired(&self) {
        self.status_cache.evict_expired();
        self.models_cache.evict_expired();
        self.rules_cache.evict_expired();
    }

    /// Returns the status that the sidecar of this server reports.
    pub(crate) async fn sidecar_status(&self, addr: &SidecarAddr<'_>) -> TimedResult<SidecarStatus> {
        match &addr.sidecar_port {
            Ok(sidecar_port) => timed_result(self.poll_sidecar(addr, *sidecar_port).await),
            Err(why) => (None, Err(why.clone())),
        }
    }

    /// Returns the status that the sidecar reports; without a sidecar, the status derived from vLLM's model list.
    /// `existing_uids` returns the UIDs of all pods.
    pub(crate) async fn status_or_models(
        &self,
        addr: &SidecarAddr<'_>,
        existing_uids: impl FnOnce() -> HashSet<String>,
    ) -> TimedResult<SidecarStatus> {
        let (uid, sidecar_port) = match &addr.sidecar_port {
            Ok(sidecar_port) => (addr.pod.uid.as_str(), *sidecar_port),
            Err(why) => return (None, Err(why.clone())),
        };
        let response = self.poll_sidecar(addr, sidecar_port).await;
        // A pod with the sidecar label has a sidecar even if it does not respond.
        let Some(port) = addr.server_port.filter(|_| !addr.pod.has_sidecar) else { return timed_result(response) };
        match &response.result {
            Ok(_) => self.known_sidecars.insert(uid, sidecar_port, existing_uids),
            Err(HttpClientError::Unreachable(_)) if !self.known_sidecars.contains(uid, sidecar_port) => {
                return self.poll_models(addr, port).await;
            }
            Err(_) => {}
        }
        timed_result(response)
    }

    /// Returns the rules that a router applies.
    pub(crate) async fn router_rules(&self, pod: &Pod, ip: IpAddr) -> TimedResult<RulesReport> {
        let port = match pod_discovery::router_port(pod) {
            Ok(port) => port,
            Err(why) => return (None, Err(why)),
        };
        timed_result(self.rules_cache.get(&pod.uid, port, |reuse| self.http.get(ip, port, "/rules", reuse)).await)
    }

    async fn poll_sidecar(&self, addr: &SidecarAddr<'_>, port: u16) -> CachedResponse<SidecarStatus> {
        let request =
            |reuse| async move { self.http.get(addr.ip, port, "/status", reuse).await.map(strip_unused_fields) };
        self.status_cache.get(&addr.pod.uid, port, request).await
    }

    async fn poll_models(&self, addr: &SidecarAddr<'_>, port: u16) -> TimedResult<SidecarStatus> {
        let &SidecarAddr { pod, ip, .. } = addr;
        let request = |reuse| async move {
            let models = self.http.get::<VllmModelList>(ip, port, "/v1/models", reuse).await;
            models.map(|all| all.to_status(pod, ip, port))
        };
        timed_result(self.models_cache.get(&pod.uid, port, request).await)
    }
}

/// Drops the fields that no decision uses: a pool may have hundreds of servers, each with hundreds of adapters.
fn strip_unused_fields(mut status: SidecarStatus) -> SidecarStatus {
    for adapter in &mut status.adapters {
        (adapter.source, adapter.root, adapter.fetch) = (None, None, None);
    }
    status.adapters.shrink_to_fit();
    status
}

fn timed_result<T>(response: CachedResponse<T>) -> TimedResult<T> {
    (Some(response.requested_at), response.result.map_err(|error| error.to_string()))
}

/// The part of vLLM's response to `GET /v1/models` that is used.
#[derive(Debug, Deserialize)]
struct VllmModelList {
    data: Vec<VllmModel>,
}

#[derive(Debug, Deserialize)]
struct VllmModel {
    id: String,
    /// Base model of an adapter; `None` for a base model.
    #[serde(default)]
    parent: Option<String>,
}

impl VllmModelList {
    /// Returns the status that a sidecar would report if it knew only this list.
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
                message: "no sidecar responds; adapters are taken from vLLM's model list".to_owned(),
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
    fn listed_model_is_resident_but_not_verified() {
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
    fn unused_status_fields_are_dropped() {
        let text = r#"{"id":"v1","state":"Verified","source":"org/a","root":"/a","attempts":1,
            "lastError":{"reason":"Timeout","message":"it took long"},"lastUsed":"2026-01-01T00:00:00Z"}"#;
        let adapter: AdapterStatus = serde_json::from_str(text).unwrap();
        let status = strip_unused_fields(SidecarStatus { adapters: vec![adapter.clone()], ..SidecarStatus::default() });
        assert_eq!(status.adapters, [AdapterStatus { source: None, root: None, fetch: None, ..adapter }]);
    }

    const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Serves this JSON until the returned task set is dropped.
    async fn serve_json(path: &'static str, response: Value) -> (u16, JoinSet<()>) {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new().route(path, get(move || async move { response.to_string() }));
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, app).await.unwrap() });
        (port, task)
    }

    /// Advances the clock until cached responses are not reused anymore.
    async fn expire_responses() {
        tokio::time::pause();
        tokio::time::advance(RESPONSE_TTL).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn unresponsive_sidecar_is_not_a_missing_sidecar() {
        let (pod, client) = (pod(None), PodClient::default());
        let (port, _vllm) = serve_json("/v1/models", json!({ "data": [{ "id": "v1", "parent": "base" }] })).await;
        let status = serde_json::to_value(SidecarStatus::default()).unwrap();
        let (sidecar_port, mut sidecar) = serve_json("/status", status).await;
        let addr = SidecarAddr {
            pod: &pod,
            ip: LOCALHOST,
            name: String::new(),
            server_port: Some(port),
            sidecar_port: Ok(sidecar_port),
        };
        let ask = async || client.status_or_models(&addr, HashSet::new).await.1;
        assert!(ask().await.unwrap().adapters.is_empty(), "the sidecar has none");
        sidecar.shutdown().await;
        expire_responses().await;
        let error = ask().await.unwrap_err();
        assert!(error.contains(&format!(":{sidecar_port}/status failed")), "{error}");

        let other = Pod { uid: "other".to_owned(), ..pod.clone() };
        let addr = SidecarAddr { pod: &other, name: String::new(), sidecar_port: Ok(sidecar_port), ..addr };
        let models = client.status_or_models(&addr, HashSet::new).await.1.unwrap();
        assert_eq!(models.adapters.len(), 1, "the pod never had a sidecar");
        assert!(client.sidecar_status(&addr).await.1.is_err(), "a missing sidecar is an error if one is required");
        let other = Pod { uid: "another".to_owned(), has_sidecar: true, ..pod.clone() };
        let addr = SidecarAddr { pod: &other, name: String::new(), sidecar_port: Ok(sidecar_port), ..addr };
        assert!(client.status_or_models(&addr, HashSet::new).await.1.is_err(), "the pod has the sidecar label");
    }
}
