//! The pods of a cluster, asked what they hold and by what they route: all at once, each with a time limit.

use crate::{
    answers::{Answer, Answers},
    store::{beside, name_of, read_error},
    whom::{self, Whom},
};
use futures_util::future::join_all;
use rollora_api::{
    names::{AdapterId, ModelName},
    rewrite::PoolRef,
    rollout::spec::{AdaptersRef, ResidencyProof},
    router_report::RulesReport,
    sidecar_status::{AdapterState, AdapterStatus, Readiness, ServerIdentity, SidecarStatus},
};
use rollora_cluster::{AskError, Asker, Documents, Pod, Pool};
use rollora_operator::ports::{Fleet, Heard, ReadError, RolloutKey, Router, Server};
use serde::Deserialize;
use std::{net::IpAddr, sync::Arc};
use tokio::time::Instant;

/// The pods.
#[derive(Debug)]
pub(crate) struct ClusterFleet {
    documents: Documents,
    asker: Asker,
    answers: Arc<AllAnswers>,
}

/// What pods answered to the three questions there are.
#[derive(Debug, Default)]
pub(crate) struct AllAnswers {
    statuses: Answers<SidecarStatus>,
    models: Answers<SidecarStatus>,
    rules: Answers<RulesReport>,
}

impl AllAnswers {
    /// Forgets what nobody asks for any more.
    pub(crate) fn sweep(&self) {
        self.statuses.sweep();
        self.models.sweep();
        self.rules.sweep();
    }
}

impl ClusterFleet {
    pub(crate) fn new(documents: Documents) -> Self {
        Self { documents, asker: Asker::default(), answers: Arc::default() }
    }

    pub(crate) fn answers(&self) -> &Arc<AllAnswers> {
        &self.answers
    }
}

impl Fleet for ClusterFleet {
    async fn servers(&self, key: &RolloutKey, pool: &PoolRef) -> Result<Heard<Server>, ReadError> {
        let found = self.documents.pool(&beside(key, &pool.name)).await;
        self.ask(key, &[found.map_err(read_error)?]).await
    }

    async fn sharers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
        reference: &AdaptersRef,
    ) -> Result<Heard<Server>, ReadError> {
        let found = self.documents.sharers(&beside(key, &pool.name), &reference.name).await;
        self.ask(key, &found.map_err(read_error)?).await
    }

    async fn routers(&self, key: &RolloutKey, pool: &PoolRef, _: &ModelName) -> Result<Heard<Router>, ReadError> {
        let pods = self.documents.routers(&beside(key, &pool.name)).await.map_err(read_error)?;
        let asked = whom::running(&pods).map(|(pod, ip)| async move {
            let (at, report) = self.rules(pod, ip).await;
            (at, Router { name: pod.name.clone(), report })
        });
        Ok(heard(join_all(asked).await))
    }
}

/// What a pod said and when it was asked for it; nobody was asked where it is known without that.
type Said<T> = (Option<Instant>, Result<Arc<T>, String>);

impl ClusterFleet {
    /// Asks every server of these pods of these pools, as the Rollout wants to be assured.
    async fn ask(&self, key: &RolloutKey, pools: &[(Pool, Vec<Pod>)]) -> Result<Heard<Server>, ReadError> {
        let rollout = self.documents.rollout(&name_of(key)).await.map_err(read_error)?;
        let registered = rollout.is_some_and(|rollout| rollout.value.spec.residency == ResidencyProof::Registered);
        let servers = pools.iter().flat_map(|(pool, pods)| whom::servers(pool, pods));
        let asked = servers.map(|whom| async move {
            let (at, status) = self.status(&whom, registered).await;
            let Whom { pod, name, .. } = whom;
            let (ready, unready_since, leaving) = (pod.ready, pod.unready_since, pod.leaving);
            (at, Server { name, uid: pod.uid.clone(), ready, unready_since, leaving, status })
        });
        Ok(heard(join_all(asked).await))
    }

    /// What the sidecar of this server says; where there is none and that suffices, what vLLM itself lists.
    async fn status(&self, whom: &Whom<'_>, registered: bool) -> Said<SidecarStatus> {
        let &Whom { pod, ip, port, .. } = whom;
        let sidecar = match &whom.sidecar {
            Ok(sidecar) => *sidecar,
            Err(why) => return (None, Err(why.clone())),
        };
        let ask = |again| self.asker.get(ip, sidecar, "/status", again);
        match self.answers.statuses.get(&pod.uid, sidecar, ask).await {
            Answer { said: Err(AskError::Unreachable(_)), .. } if registered => {
                let list = |again| async move {
                    self.asker
                        .get::<Models>(ip, port, "/v1/models", again)
                        .await
                        .map(|all| all.as_status(pod, ip, port))
                };
                said(self.answers.models.get(&pod.uid, port, list).await)
            }
            answer => said(answer),
        }
    }

    async fn rules(&self, pod: &Pod, ip: IpAddr) -> Said<RulesReport> {
        let port = match whom::router_port(pod) {
            Ok(port) => port,
            Err(why) => return (None, Err(why)),
        };
        said(self.answers.rules.get(&pod.uid, port, |again| self.asker.get(ip, port, "/rules", again)).await)
    }
}

fn said<T>(answer: Answer<T>) -> Said<T> {
    (Some(answer.at), answer.said.map_err(|error| error.to_string()))
}

/// All of them, and when the oldest answer was asked for.
fn heard<T>(all: Vec<(Option<Instant>, T)>) -> Heard<T> {
    let asked = all.iter().filter_map(|(at, _)| *at).min();
    Heard { answers: all.into_iter().map(|(_, answer)| answer).collect(), asked }
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
                start: pod.containers.clone(),
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
    use crate::whom::tests::pod;

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
