//! A fake API server for the ConfigMaps of one namespace: get, list and watch, with resource versions, outages,
//! refusals and verbs that never answer.

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::watch};

const NAMESPACE: &str = "default";
/// The bearer token in the kubeconfig.
pub(crate) const TOKEN: &str = "token-of-the-cluster-5e1d";

#[derive(Debug, Default)]
struct ApiServerState {
    version: u64,
    /// All watch events, with their resource versions.
    events: Vec<(u64, Value)>,
    objects: BTreeMap<String, Value>,
    forbidden: bool,
    /// Verbs that get no answer; a muted watch delivers no events.
    muted_verbs: BTreeSet<&'static str>,
    /// The received requests, in order.
    requests: Vec<String>,
}

#[derive(Clone)]
struct ApiServerContext {
    shared: Arc<Mutex<ApiServerState>>,
    version_tx: watch::Sender<u64>,
}

/// The fake API server. It keeps its address over outages.
pub(crate) struct FakeApiServer {
    address: SocketAddr,
    server: ApiServerContext,
    runtime: Option<Runtime>,
    folder: TempDir,
}

impl FakeApiServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = ApiServerContext { shared: Arc::default(), version_tx: watch::Sender::new(0) };
        let folder = tempfile::tempdir().unwrap();
        let mut api = Self { address: listener.local_addr().unwrap(), server, runtime: None, folder };
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{ "name": "here", "cluster": { "server": format!("http://{}", api.address) } }],
            "users": [{ "name": "me", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "me" } }],
        });
        std::fs::write(api.kubeconfig(), kubeconfig.to_string()).unwrap();
        api.serve_on(listener);
        api
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn serve_on(&mut self, listener: TcpListener) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        let routes = Router::new()
            .route("/api/v1/namespaces/{namespace}/configmaps", get(list_or_watch))
            .route("/api/v1/namespaces/{namespace}/configmaps/{name}", get(get_configmap))
            .with_state(self.server.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, routes).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    /// Starts an outage: every connection breaks.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Ends an outage, at the same address.
    pub(crate) fn restart(&mut self) {
        let listener = loop {
            // The address is free only when the previous runtime has ended.
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        self.serve_on(listener);
    }

    /// Creates or replaces a ConfigMap.
    pub(crate) fn apply(&self, name: &str, data: &[(&str, &str)]) {
        let version = {
            let mut shared = self.server.shared.lock().unwrap();
            shared.version += 1;
            let version = shared.version;
            let data: BTreeMap<_, _> = data.iter().copied().collect();
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": { "name": name, "namespace": NAMESPACE, "resourceVersion": version.to_string() },
            });
            let kind =
                if shared.objects.insert(name.to_owned(), object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
            shared.events.push((version, json!({ "type": kind, "object": object })));
            version
        };
        self.server.version_tx.send_replace(version);
    }

    pub(crate) fn delete(&self, name: &str) {
        let version = {
            let mut shared = self.server.shared.lock().unwrap();
            let mut object = shared.objects.remove(name).unwrap();
            shared.version += 1;
            let version = shared.version;
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            shared.events.push((version, json!({ "type": "DELETED", "object": object })));
            version
        };
        self.server.version_tx.send_replace(version);
    }

    pub(crate) fn set_forbidden(&self, forbidden: bool) {
        self.server.shared.lock().unwrap().forbidden = forbidden;
    }

    /// Requests with this verb are accepted but never answered, as behind a proxy that hangs.
    pub(crate) fn mute_verb(&self, verb: &'static str) {
        self.server.shared.lock().unwrap().muted_verbs.insert(verb);
    }

    /// Answers all verbs again.
    pub(crate) fn unmute(&self) {
        self.server.shared.lock().unwrap().muted_verbs.clear();
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.server.shared.lock().unwrap().requests.clone()
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn status_failure(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message,
    });
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}

async fn get_configmap(
    State(server): State<ApiServerContext>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let (found, forbidden, muted) = {
        let mut shared = server.shared.lock().unwrap();
        shared.requests.push(format!("get {namespace}/{name}"));
        (shared.objects.get(&name).cloned(), shared.forbidden, shared.muted_verbs.contains("get"))
    };
    if muted {
        std::future::pending::<()>().await;
    }
    match found {
        _ if forbidden => status_failure(403, "Forbidden", "configmaps is forbidden"),
        Some(object) => Json(object).into_response(),
        None => status_failure(404, "NotFound", "configmaps not found"),
    }
}

async fn list_or_watch(
    State(server): State<ApiServerContext>,
    Path(namespace): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let query: BTreeMap<String, String> = query
        .unwrap_or_default()
        .split('&')
        .filter_map(|part| part.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=")))
        .collect();
    let selected = query.get("fieldSelector").cloned().unwrap_or_default();
    let is_watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let verb = if is_watch { "watch" } else { "list" };
    let name = selected.strip_prefix("metadata.name=").map(str::to_owned);
    let muted = !is_watch && server.shared.lock().unwrap().muted_verbs.contains("list");
    if muted {
        std::future::pending::<()>().await;
    }
    {
        let mut shared = server.shared.lock().unwrap();
        shared.requests.push(format!("{verb} {namespace}?{selected}"));
        if shared.forbidden {
            return status_failure(403, "Forbidden", "configmaps is forbidden");
        }
        if !is_watch {
            let named = |object: &&Value| name.as_deref().is_none_or(|name| object["metadata"]["name"] == *name);
            let items: Vec<Value> = shared.objects.values().filter(named).cloned().collect();
            let metadata = json!({ "resourceVersion": shared.version.to_string() });
            let list = json!({ "apiVersion": "v1", "kind": "ConfigMapList", "metadata": metadata, "items": items });
            return Json(list).into_response();
        }
    }
    let from: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
    let version_rx = server.version_tx.subscribe();
    let events = stream::unfold((server, version_rx, from, name), |(server, mut version_rx, from, name)| async move {
        loop {
            let next = {
                let shared = server.shared.lock().unwrap();
                let is_selected =
                    |event: &Value| name.as_deref().is_none_or(|name| event["object"]["metadata"]["name"] == *name);
                let found =
                    shared.events.iter().find(|(version, event)| *version > from && is_selected(event)).cloned();
                found.filter(|_| !shared.muted_verbs.contains("watch"))
            };
            if let Some((version, event)) = next {
                let line = format!("{event}\n");
                return Some((Ok::<_, Infallible>(line), (server, version_rx, version, name)));
            }
            version_rx.changed().await.ok()?;
        }
    });
    ([("content-type", "application/json")], Body::from_stream(events)).into_response()
}
