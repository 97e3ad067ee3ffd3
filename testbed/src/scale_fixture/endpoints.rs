//! One listener for all pods: `/status` of every sidecar and `/rules` of every router, told apart by the address that
//! was connected to.
//!
//! It is bound to the loopback device and to nothing else, and answers from what was seen of the API server: sidecars
//! hold at once what the ConfigMap and the operator's key let them hold, routers follow at once, or stay behind.

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

/// How long a router that is neither quite behind nor quite there is the one and the other.
const FLAP_INTERVAL: Duration = Duration::from_millis(700);

/// Listens at one port of every loopback address.
pub(super) fn listen_on_loopback(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(Some(b"lo")).context("cannot keep to the loopback device")?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    Ok(socket.listen(4096)?)
}

/// Answers for ever.
pub(super) async fn serve(listener: TcpListener, seen: SharedFixtureState) {
    let (mut connections, start) = (JoinSet::new(), clock::now());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(serve_connection(stream, seen.clone(), start)); }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(stream: TcpStream, seen: SharedFixtureState, start: Instant) {
    let place = match stream.local_addr().map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) => FixturePod::from_address(address),
        _ => None,
    };
    // Without it answers are slower, not wrong.
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request: Request<Incoming>| {
        let body = place.and_then(|place| seen.with(|seen| respond(seen, place, request.uri().path(), start)));
        let status = if body.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
        let mut response = Response::new(Full::new(body.unwrap_or_default()));
        *response.status_mut() = status;
        std::future::ready(Ok::<_, Infallible>(response))
    });
    // How a connection ends is the client's business.
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

fn respond(seen: &FixtureState, place: FixturePod, path: &str, start: Instant) -> Option<Bytes> {
    match (place.role, path) {
        (PodRole::Server(_), "/status") => Some(seen.pool_configs.get(&place.pool)?.status_of(&place.name())),
        (PodRole::Router(number), "/rules") => {
            let flipped = (start.elapsed().as_millis() / FLAP_INTERVAL.as_millis()) % 2 == 1;
            let behind = seen.routers_held && (number == 0 || flipped);
            serde_json::to_vec(&rules_report(seen, place.pool, behind)).ok().map(Bytes::from)
        }
        _ => None,
    }
}

/// What the sidecars of a pool are told, and what they say.
#[derive(Debug, Clone)]
pub(super) struct PoolConfig {
    adapters_file: AdaptersFile,
    directives: OperatorDirectives,
    status: SidecarStatus,
    /// The status of every server but the pilots, written down once.
    status_json: Bytes,
}

impl PoolConfig {
    /// What the content of the ConfigMap makes of them.
    pub(super) fn parse(user_text: &str, key_text: Option<&str>) -> Result<Self> {
        let file = AdaptersFile::parse(user_text)?.file;
        let key = key_text.map(OperatorDirectives::parse).transpose()?.unwrap_or_default();
        let hash = content_hash(user_text, key_text);
        let status = SidecarStatus {
            server: Some(ServerIdentity { endpoint: "http://localhost:8000".to_owned(), start: "1".to_owned() }),
            readiness: ReadinessStatus { ready: true, reason: "Ready".to_owned(), message: "it serves".to_owned() },
            config: ConfigStatus { hash: Some(hash), operator_directives: key_text.is_some(), error: None },
            base_models: vec!["base".to_owned()],
            ..SidecarStatus::default()
        };
        let mut map = Self { adapters_file: file, directives: key, status, status_json: Bytes::new() };
        map.status_json = map.render_status("");
        Ok(map)
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

/// What a router says: a model is called as its rewrite is. One that is behind has not heard of the last weights of what is split.
fn rules_report(seen: &FixtureState, pool: u16, behind: bool) -> RulesReport {
    let rewrites = seen.rewrites.get(&pool).into_iter().flatten();
    let models = rewrites.filter_map(|(name, rewrite)| Some((name.clone(), active_rule(rewrite, behind)?)));
    RulesReport { groups: vec!["llm-d.ai".to_owned()], models: models.collect(), ..RulesReport::default() }
}

fn active_rule(rewrite: &InferenceModelRewrite, behind: bool) -> Option<ActiveRule> {
    let rule = rewrite.spec.rules.first()?;
    let late = i64::from(behind && rule.targets.len() > 1);
    let metadata = &rewrite.metadata;
    let stamps = metadata.annotations.iter().filter_map(|(name, value)| {
        let uid = name.strip_prefix(SEQUENCE_ANNOTATION_PREFIX)?;
        Some((uid.to_owned(), value.parse::<i64>().ok()? - late))
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
    fn a_governed_adapter_is_on_its_pilot_alone_until_it_is_admitted() {
        let id = format!("{}-v1", rollout_name(0, 0));
        let user = format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: {id}\n      source: /a\n");
        let state = |key: &str, pod: &str| {
            let map = PoolConfig::parse(&user, Some(key)).unwrap();
            let status: SidecarStatus = serde_json::from_slice(&map.status_of(pod)).unwrap();
            status.adapters[0].state
        };
        let key = format!("managed: [{id}]\npilots: [{{id: {id}, pod: pool-0000-1}}]\n");
        assert_eq!(state(&key, "pool-0000-1"), AdapterState::Verified);
        assert_eq!(state(&key, "pool-0000-2"), AdapterState::AwaitingAdmission);
        assert_eq!(state(&format!("managed: [{id}]\nadmitted: [{id}]\n"), "pool-0000-2"), AdapterState::Verified);
    }
}
