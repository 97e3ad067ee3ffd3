//! One listener for all pods: `/status` of every sidecar and `/rules` of every router. The local address of a
//! connection tells which pod it is for.
//!
//! The listener is bound to the loopback device. Responses are derived from the watched state: sidecars have
//! immediately loaded what the ConfigMap and the operator directives permit, and routers apply new rules immediately or
//! stay behind.

use super::{
    objects::{FixturePod, PodRole},
    state::{FixtureState, SharedFixtureState},
};
use crate::clock;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rollora_api::{
    adapters::{AdaptersFile, content_hash},
    names::SEQUENCE_ANNOTATION_PREFIX,
    operator_directives::{Admission, OperatorDirectives},
    rewrite::InferenceModelRewrite,
    router_report::{ActiveRule, RulesReport},
    sidecar_status::{AdapterState, AdapterStatus, ConfigStatus, ReadinessStatus, ServerIdentity, SidecarStatus},
};
use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

/// Interval at which a held router with a number above 0 alternates between the old and the new weights.
const FLAP_INTERVAL: Duration = Duration::from_millis(700);

/// Listens at one port of all loopback addresses.
pub(super) fn listen_on_loopback(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(Some(b"lo")).context("cannot bind the listener to the loopback device")?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    Ok(socket.listen(4096)?)
}

/// Serves connections; never returns.
pub(super) async fn serve(listener: TcpListener, state: SharedFixtureState) {
    let (mut connections, start) = (JoinSet::new(), clock::now());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(serve_connection(stream, state.clone(), start)); }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(stream: TcpStream, state: SharedFixtureState, start: Instant) {
    let pod = match stream.local_addr().map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) => FixturePod::from_address(address),
        _ => None,
    };
    // Without TCP_NODELAY responses are only slower.
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request: Request<Incoming>| {
        let body = pod.and_then(|pod| state.with(|state| respond(state, pod, request.uri().path(), start)));
        let status = if body.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
        let mut response = Response::new(Full::new(body.unwrap_or_default()));
        *response.status_mut() = status;
        std::future::ready(Ok::<_, Infallible>(response))
    });
    // Errors of a connection are the client's concern.
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

fn respond(state: &FixtureState, pod: FixturePod, path: &str, start: Instant) -> Option<Bytes> {
    match (pod.role, path) {
        (PodRole::Server(_), "/status") => Some(state.pool_configs.get(&pod.pool)?.status_of(&pod.name())),
        (PodRole::Router(number), "/rules") => {
            let flipped = (start.elapsed().as_millis() / FLAP_INTERVAL.as_millis()) % 2 == 1;
            let behind = state.routers_held && (number == 0 || flipped);
            serde_json::to_vec(&rules_report(state, pod.pool, behind)).ok().map(Bytes::from)
        }
        _ => None,
    }
}

/// The adapters file and the directives of a pool, and the status that its sidecars report.
#[derive(Debug, Clone)]
pub(super) struct PoolConfig {
    adapters_file: AdaptersFile,
    directives: OperatorDirectives,
    status: SidecarStatus,
    /// Serialized status, shared by all servers except pilots.
    status_json: Bytes,
}

impl PoolConfig {
    /// Parses the content of the pool's ConfigMap.
    pub(super) fn parse(user_text: &str, directives_text: Option<&str>) -> Result<Self> {
        let file = AdaptersFile::parse(user_text)?.file;
        let directives = directives_text.map(OperatorDirectives::parse).transpose()?.unwrap_or_default();
        let hash = content_hash(user_text, directives_text);
        let status = SidecarStatus {
            server: Some(ServerIdentity { endpoint: "http://localhost:8000".to_owned(), start: "1".to_owned() }),
            readiness: ReadinessStatus { ready: true, reason: "Ready".to_owned(), message: "it serves".to_owned() },
            config: ConfigStatus { hash: Some(hash), operator_directives: directives_text.is_some(), error: None },
            base_models: vec!["base".to_owned()],
            ..SidecarStatus::default()
        };
        let mut config = Self { adapters_file: file, directives, status, status_json: Bytes::new() };
        config.status_json = config.render_status("");
        Ok(config)
    }

    fn status_of(&self, pod: &str) -> Bytes {
        let pilot = self.directives.pilots.iter().any(|pilot| pilot.pod == pod);
        if pilot { self.render_status(pod) } else { self.status_json.clone() }
    }

    fn render_status(&self, pod: &str) -> Bytes {
        let adapters = self.adapters_file.ensure_exist.iter().map(|entry| {
            let state = match self.directives.admission(&entry.id, pod) {
                Admission::Granted => AdapterState::Verified,
                Admission::Waiting => AdapterState::AwaitingAdmission,
                Admission::Rejected => AdapterState::Rejected,
            };
            AdapterStatus { source: entry.source.clone().into(), ..AdapterStatus::new(entry.id.clone(), state) }
        });
        let status = SidecarStatus { adapters: adapters.collect(), ..self.status.clone() };
        serde_json::to_vec(&status).unwrap_or_default().into()
    }
}

/// The report of a router. The model name is the name of its rewrite. A router that is behind reports the previous
/// sequence of rewrites with split traffic.
fn rules_report(state: &FixtureState, pool: u16, behind: bool) -> RulesReport {
    let rewrites = state.rewrites.get(&pool).into_iter().flatten();
    let models = rewrites.filter_map(|(name, rewrite)| Some((name.clone(), active_rule(rewrite, behind)?)));
    RulesReport { groups: vec!["llm-d.ai".to_owned()], models: models.collect(), ..RulesReport::default() }
}

fn active_rule(rewrite: &InferenceModelRewrite, behind: bool) -> Option<ActiveRule> {
    let rule = rewrite.spec.rules.first()?;
    let lag = i64::from(behind && rule.targets.len() > 1);
    let metadata = &rewrite.metadata;
    let stamps = metadata.annotations.iter().filter_map(|(name, value)| {
        let uid = name.strip_prefix(SEQUENCE_ANNOTATION_PREFIX)?;
        Some((uid.to_owned(), value.parse::<i64>().ok()? - lag))
    });
    Some(ActiveRule {
        group: rewrite.group()?.name().to_owned(),
        rewrite: format!("{}/{}", metadata.namespace.as_deref().unwrap_or_default(), metadata.name),
        uid: metadata.uid.clone().unwrap_or_default(),
        stamps: stamps.collect(),
        targets: rule.targets.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::objects::rollout_name, *};

    #[test]
    fn managed_adapter_is_on_its_pilot_only_until_admitted() {
        let id = format!("{}-v1", rollout_name(0, 0));
        let user = format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: {id}\n      source: /a\n");
        let state = |directives: &str, pod: &str| {
            let config = PoolConfig::parse(&user, Some(directives)).unwrap();
            let status: SidecarStatus = serde_json::from_slice(&config.status_of(pod)).unwrap();
            status.adapters[0].state
        };
        let directives = format!("managed: [{id}]\npilots: [{{id: {id}, pod: pool-0000-1}}]\n");
        assert_eq!(state(&directives, "pool-0000-1"), AdapterState::Verified);
        assert_eq!(state(&directives, "pool-0000-2"), AdapterState::AwaitingAdmission);
        assert_eq!(state(&format!("managed: [{id}]\nadmitted: [{id}]\n"), "pool-0000-2"), AdapterState::Verified);
    }
}
