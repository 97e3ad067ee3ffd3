//! One question to one server or router, and what is made of what it says.

use crate::{
    answered::Answered,
    answers::{Answer, Answers},
    whom::{self, Whom},
};
use rollora_api::{
    names::AdapterId,
    router_report::RulesReport,
    sidecar_status::{AdapterState, AdapterStatus, NO_SIDECAR, ReadinessStatus, ServerIdentity, SidecarStatus},
};
use rollora_cluster::{AskError, Asker, Pod};
use serde::Deserialize;
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tokio::time::Instant;

/// The three questions there are, and what pods answered to them.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    asker: Asker,
    statuses: Answers<SidecarStatus>,
    models: Answers<SidecarStatus>,
    rules: Answers<RulesReport>,
    answered: Answered,
}

/// What a pod said and when it was asked for it; nobody was asked where it is known without that.
pub(crate) type Said<T> = (Option<Instant>, Result<Arc<T>, String>);

impl Questions {
    /// Forgets what nobody asks for any more.
    pub(crate) fn sweep(&self) {
        self.statuses.sweep();
        self.models.sweep();
        self.rules.sweep();
    }

    /// What the sidecar of this server says.
    pub(crate) async fn status(&self, whom: &Whom<'_>) -> Said<SidecarStatus> {
        match &whom.sidecar {
            Ok(sidecar) => said(self.ask_sidecar(whom, *sidecar).await),
            Err(why) => (None, Err(why.clone())),
        }
    }

    /// The same; where there is no sidecar, what vLLM itself lists. `there` are the UIDs of all pods.
    pub(crate) async fn status_or_models(
        &self,
        whom: &Whom<'_>,
        there: impl FnOnce() -> HashSet<String>,
    ) -> Said<SidecarStatus> {
        let (uid, sidecar) = match &whom.sidecar {
            Ok(sidecar) => (whom.pod.uid.as_str(), *sidecar),
            Err(why) => return (None, Err(why.clone())),
        };
        let answer = self.ask_sidecar(whom, sidecar).await;
        // A pod that says that it has a sidecar has one.
        let Some(port) = whom.port.filter(|_| !whom.pod.has_sidecar) else { return said(answer) };
        match &answer.said {
            Ok(_) => self.answered.note(uid, sidecar, there),
            Err(AskError::Unreachable(_)) if !self.answered.has(uid, sidecar) => return self.models(whom, port).await,
            Err(_) => {}
        }
        said(answer)
    }

    /// By what a router routes.
    pub(crate) async fn rules(&self, pod: &Pod, ip: IpAddr) -> Said<RulesReport> {
        let port = match whom::router_port(pod) {
            Ok(port) => port,
            Err(why) => return (None, Err(why)),
        };
        said(self.rules.get(&pod.uid, port, |again| self.asker.get(ip, port, "/rules", again)).await)
    }

    async fn ask_sidecar(&self, whom: &Whom<'_>, port: u16) -> Answer<SidecarStatus> {
        let ask = |again| async move { self.asker.get(whom.ip, port, "/status", again).await.map(lean) };
        self.statuses.get(&whom.pod.uid, port, ask).await
    }

    async fn models(&self, whom: &Whom<'_>, port: u16) -> Said<SidecarStatus> {
        let &Whom { pod, ip, .. } = whom;
        let list = |again| async move {
            let listed = self.asker.get::<Models>(ip, port, "/v1/models", again).await;
            listed.map(|all| all.as_status(pod, ip, port))
        };
        said(self.models.get(&pod.uid, port, list).await)
    }
}

/// Without what nothing is decided by: a pool may have hundreds of servers, each with hundreds of adapters.
fn lean(mut status: SidecarStatus) -> SidecarStatus {
    for adapter in &mut status.adapters {
        (adapter.source, adapter.root, adapter.fetch) = (None, None, None);
    }
    status.adapters.shrink_to_fit();
    status
}

fn said<T>(answer: Answer<T>) -> Said<T> {
    (Some(answer.at), answer.said.map_err(|error| error.to_string()))
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

impl Models {
    /// The same as a sidecar would say it, if it only saw what is listed.
    fn as_status(&self, pod: &Pod, ip: IpAddr, port: u16) -> SidecarStatus {
        let (adapters, base): (Vec<&Model>, Vec<&Model>) = self.data.iter().partition(|model| model.parent.is_some());
        let adapters = adapters.iter().filter_map(|model| AdapterId::new(model.id.clone()).ok());
        let adapter = |id| AdapterStatus::new(id, AdapterState::Loaded);
        SidecarStatus {
            server: Some(ServerIdentity {
                endpoint: format!("http://{}", SocketAddr::new(ip, port)),
                start: pod.containers.clone(),
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
    use crate::whom::tests::pod;
    use axum::{Router, routing::get};
    use rollora_operator::ports::ANSWER_STANDS;
    use serde_json::{Value, json};
    use tokio::{net::TcpListener, task::JoinSet};

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

    #[test]
    fn what_nothing_is_decided_by_is_not_kept() {
        let text = r#"{"id":"v1","state":"Verified","source":"org/a","root":"/a","attempts":1,
            "lastError":{"reason":"Timeout","message":"it took long"},"lastUsed":"2026-01-01T00:00:00Z"}"#;
        let adapter: AdapterStatus = serde_json::from_str(text).unwrap();
        let status = lean(SidecarStatus { adapters: vec![adapter.clone()], ..SidecarStatus::default() });
        assert_eq!(status.adapters, [AdapterStatus { source: None, root: None, fetch: None, ..adapter }]);
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Answers this until the task is ended.
    async fn answers(path: &'static str, answer: Value) -> (u16, JoinSet<()>) {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new().route(path, get(move || async move { answer.to_string() }));
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, app).await.unwrap() });
        (port, task)
    }

    /// Until another question is asked.
    async fn time_goes_on() {
        tokio::time::pause();
        tokio::time::advance(ANSWER_STANDS).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn a_sidecar_that_is_silent_is_not_one_that_is_not_there() {
        let (pod, questions) = (pod(None), Questions::default());
        let (port, _vllm) = answers("/v1/models", json!({ "data": [{ "id": "v1", "parent": "base" }] })).await;
        let status = serde_json::to_value(SidecarStatus::default()).unwrap();
        let (sidecar_port, mut sidecar) = answers("/status", status).await;
        let whom = Whom { pod: &pod, ip: HERE, name: String::new(), port: Some(port), sidecar: Ok(sidecar_port) };
        let ask = async || questions.status_or_models(&whom, HashSet::new).await.1;
        assert!(ask().await.unwrap().adapters.is_empty(), "the sidecar has none");
        sidecar.shutdown().await;
        time_goes_on().await;
        let silence = ask().await.unwrap_err();
        assert!(silence.contains(&format!(":{sidecar_port}/status cannot be asked")), "{silence}");

        let other = Pod { uid: "other".to_owned(), ..pod.clone() };
        let whom = Whom { pod: &other, name: String::new(), sidecar: Ok(sidecar_port), ..whom };
        let listed = questions.status_or_models(&whom, HashSet::new).await.1.unwrap();
        assert_eq!(listed.adapters.len(), 1, "it never had a sidecar");
        assert!(questions.status(&whom).await.1.is_err(), "and where one is needed, that is an error");
        let other = Pod { uid: "another".to_owned(), has_sidecar: true, ..pod.clone() };
        let whom = Whom { pod: &other, name: String::new(), sidecar: Ok(sidecar_port), ..whom };
        assert!(questions.status_or_models(&whom, HashSet::new).await.1.is_err(), "it says that it has one");
    }
}
