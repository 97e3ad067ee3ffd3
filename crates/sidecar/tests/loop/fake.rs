//! A small vLLM on loopback: a table of adapters, knobs that make it misbehave, and a log of what was asked of it.
//! Each of its processes is a runtime of its own, so that its end closes every connection, as a kill does.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Request, State},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// What it does differently from a healthy server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Knobs {
    /// How long a load takes.
    pub(crate) load_time: Duration,
    /// Loads of these never end; those of the second list take effect all the same.
    pub(crate) hanging: BTreeSet<String>,
    pub(crate) silent: BTreeSet<String>,
    /// Loads of these fail, with this answer.
    pub(crate) failing: BTreeMap<String, (u16, String)>,
    /// Unloads of these fail, with this answer.
    pub(crate) unload_failing: BTreeMap<String, (u16, String)>,
    /// Uses of these get no answer.
    pub(crate) busy: BTreeSet<String>,
    /// The first use of these ends the server.
    pub(crate) deadly: BTreeSet<String>,
    /// The key that it asks for.
    pub(crate) api_key: Option<String>,
    /// It knows neither loading nor unloading.
    pub(crate) updating_off: bool,
    /// It takes connections and says nothing.
    pub(crate) frozen: bool,
    /// It shows no metrics.
    pub(crate) metrics_closed: bool,
}

#[derive(Debug, Default)]
struct Process {
    adapters: BTreeMap<String, String>,
    used: BTreeMap<String, f64>,
}

#[derive(Debug, Default)]
struct Shared {
    knobs: Knobs,
    started: u32,
    process: Process,
    /// How often the models were asked for.
    models_asked: usize,
    /// Loads and unloads and probes, as they arrived.
    log: Vec<String>,
    loading: BTreeSet<String>,
    most_loading: usize,
    using: usize,
    /// Those of them that get no answer.
    unanswered: usize,
    most_used: usize,
}

/// The server: stays at one address over its processes.
#[derive(Debug)]
pub(crate) struct Fake {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    runtime: Arc<Mutex<Option<Runtime>>>,
}

#[derive(Clone)]
struct Server {
    shared: Arc<Mutex<Shared>>,
    runtime: Arc<Mutex<Option<Runtime>>>,
}

impl Fake {
    pub(crate) fn start(knobs: Knobs) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Mutex::new(Shared { knobs, ..Shared::default() })),
            runtime: Arc::default(),
        };
        fake.begin_on(listener);
        fake
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Another process begins; it has forgotten everything.
    pub(crate) fn begin(&self) {
        let given_up = Instant::now() + Duration::from_secs(30);
        let listener = loop {
            // The process before lets go of the address when the last of it has ended.
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < given_up, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        self.begin_on(listener);
    }

    fn begin_on(&self, listener: TcpListener) {
        {
            let mut shared = self.shared.lock().unwrap();
            shared.started += 1;
            shared.process = Process::default();
            shared.loading.clear();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = Server { shared: Arc::clone(&self.shared), runtime: Arc::clone(&self.runtime) };
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router(server)).await.unwrap();
        });
        *self.runtime.lock().unwrap() = Some(runtime);
    }

    /// The process ends, as by a kill.
    pub(crate) fn end(&self) {
        end(&self.runtime);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.runtime.lock().unwrap().is_some()
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.shared.lock().unwrap().knobs);
    }

    /// Somebody uses an adapter now.
    pub(crate) fn use_now(&self, id: &str) {
        let now = jiff::Timestamp::now().as_duration().as_secs_f64();
        self.shared.lock().unwrap().process.used.insert(id.to_owned(), now);
    }

    pub(crate) fn adapters(&self) -> Vec<String> {
        self.shared.lock().unwrap().process.adapters.keys().cloned().collect()
    }

    /// What was asked, in order.
    pub(crate) fn log(&self) -> Vec<String> {
        self.shared.lock().unwrap().log.clone()
    }

    pub(crate) fn count(&self, entry: &str) -> usize {
        self.log().iter().filter(|logged| *logged == entry).count()
    }

    /// How often the models were asked for.
    pub(crate) fn models_asked(&self) -> usize {
        self.shared.lock().unwrap().models_asked
    }

    /// Somebody else unloads an adapter.
    pub(crate) fn lose(&self, id: &str) {
        self.shared.lock().unwrap().process.adapters.remove(id);
    }

    /// The most uses that went on at the same time.
    pub(crate) fn most_used_at_once(&self) -> usize {
        self.shared.lock().unwrap().most_used
    }

    /// The most loads that went on at the same time.
    pub(crate) fn most_loading(&self) -> usize {
        self.shared.lock().unwrap().most_loading
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.end();
    }
}

fn end(runtime: &Mutex<Option<Runtime>>) {
    if let Some(runtime) = runtime.lock().unwrap().take() {
        runtime.shutdown_background();
    }
}

fn router(server: Server) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/load_lora_adapter", post(load))
        .route("/v1/unload_lora_adapter", post(unload))
        .route("/v1/completions", post(complete))
        .layer(from_fn_with_state(server.clone(), guard))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(server)
}

async fn health(State(server): State<Server>) {
    let frozen = server.shared.lock().unwrap().knobs.frozen;
    if frozen {
        std::future::pending::<()>().await;
    }
}

async fn guard(State(server): State<Server>, request: Request, next: Next) -> Response {
    let (key, off) = {
        let shared = server.shared.lock().unwrap();
        (shared.knobs.api_key.clone(), shared.knobs.updating_off)
    };
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if key.is_some_and(|key| authorization != Some(&format!("Bearer {key}"))) {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "error": "Unauthorized" }))).into_response();
    }
    if off && request.uri().path().contains("load_lora_adapter") {
        return (StatusCode::NOT_FOUND, Json(json!({ "detail": "Not Found" }))).into_response();
    }
    next.run(request).await
}

fn refusal(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, Json(json!({ "error": { "message": message } }))).into_response()
}

fn field(body: &Bytes, name: &str) -> String {
    serde_json::from_slice::<Value>(body).unwrap()[name].as_str().unwrap().to_owned()
}

async fn models(State(server): State<Server>) -> Response {
    let adapters = {
        let mut shared = server.shared.lock().unwrap();
        shared.models_asked += 1;
        shared.process.adapters.clone()
    };
    let base = json!({ "id": "base", "root": "/base", "parent": null });
    let adapter = |(id, root)| json!({ "id": id, "root": root, "parent": "base" });
    let data: Vec<Value> = std::iter::once(base).chain(adapters.into_iter().map(adapter)).collect();
    Json(json!({ "data": data })).into_response()
}

async fn metrics(State(server): State<Server>) -> Response {
    let shared = server.shared.lock().unwrap();
    if shared.knobs.metrics_closed {
        return (StatusCode::NOT_FOUND, Json(json!({ "detail": "Not Found" }))).into_response();
    }
    let mut text = format!("process_start_time_seconds {}\nvllm:num_requests_running{{}} 0\n", shared.started);
    for (id, used) in &shared.process.used {
        let labels = format!("max_lora=\"2\",running_lora_adapters=\"{id}\",waiting_lora_adapters=\"{id}\"");
        text = format!("{text}vllm:lora_requests_info{{{labels}}} {used}\n");
    }
    text.into_response()
}

async fn load(State(server): State<Server>, body: Bytes) -> Response {
    let (id, path) = (field(&body, "lora_name"), field(&body, "lora_path"));
    let knobs = {
        let mut shared = server.shared.lock().unwrap();
        shared.log.push(format!("load {id} {path}"));
        if shared.process.adapters.contains_key(&id) {
            return refusal(400, &format!("The lora adapter '{id}' has already been loaded."));
        }
        shared.loading.insert(id.clone());
        shared.most_loading = shared.most_loading.max(shared.loading.len());
        shared.knobs.clone()
    };
    if knobs.hanging.contains(&id) {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(knobs.load_time).await;
    {
        let mut shared = server.shared.lock().unwrap();
        shared.loading.remove(&id);
        if let Some((status, message)) = knobs.failing.get(&id) {
            return refusal(*status, message);
        }
        shared.process.adapters.insert(id.clone(), path);
    }
    if knobs.silent.contains(&id) {
        std::future::pending::<()>().await;
    }
    format!("Success: LoRA adapter '{id}' added successfully.").into_response()
}

async fn unload(State(server): State<Server>, body: Bytes) -> Response {
    let id = field(&body, "lora_name");
    let mut shared = server.shared.lock().unwrap();
    shared.log.push(format!("unload {id}"));
    if let Some((status, message)) = shared.knobs.unload_failing.get(&id) {
        return refusal(*status, message);
    }
    match shared.process.adapters.remove(&id) {
        Some(_) => format!("Success: LoRA adapter '{id}' removed successfully.").into_response(),
        None => refusal(404, &format!("The lora adapter '{id}' cannot be found.")),
    }
}

async fn complete(State(server): State<Server>, body: Bytes) -> Response {
    let id = field(&body, "model");
    let (known, deadly, busy) = {
        let mut shared = server.shared.lock().unwrap();
        shared.log.push(format!("use {id}"));
        let knobs = &shared.knobs;
        (shared.process.adapters.contains_key(&id), knobs.deadly.contains(&id), knobs.busy.contains(&id))
    };
    let _in_use = InUse::begin(&server, busy).await;
    // Long enough for another to come in, were it asked.
    tokio::time::sleep(Duration::from_millis(2)).await;
    if busy {
        std::future::pending::<()>().await;
    }
    if deadly {
        end(&server.runtime);
        std::future::pending::<()>().await;
    }
    if known {
        Json(json!({ "model": id, "choices": [] })).into_response()
    } else {
        refusal(404, &format!("The model `{id}` does not exist."))
    }
}

/// A completion under way, until it is dropped.
struct InUse {
    server: Server,
    busy: bool,
}

/// Whoever gives one up and begins the next is seen to close the old connection this much later at most. A client waits
/// longer for an answer.
const CLOSING: Duration = Duration::from_millis(400);

impl InUse {
    async fn begin(server: &Server, busy: bool) -> Self {
        let before = {
            let mut shared = server.shared.lock().unwrap();
            let before = shared.unanswered;
            shared.using += 1;
            shared.unanswered += usize::from(busy);
            before
        };
        let in_use = Self { server: server.clone(), busy };
        let mine = usize::from(busy);
        let given_up = async {
            while server.shared.lock().unwrap().unanswered > mine {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if before > 0 {
            drop(tokio::time::timeout(CLOSING, given_up).await);
        }
        let mut shared = server.shared.lock().unwrap();
        shared.most_used = shared.most_used.max(shared.using);
        in_use
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut shared = self.server.shared.lock().unwrap();
        shared.using -= 1;
        shared.unanswered -= usize::from(self.busy);
    }
}
