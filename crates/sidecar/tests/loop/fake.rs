//! A fake vLLM on loopback: a table of adapters, a configuration that makes it misbehave, and a log of its requests.
//! Each of its processes has its own runtime, so that the end of one closes every connection, as a kill does.

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

/// How the fake differs from a healthy server.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeVllmConfig {
    /// How long a load takes.
    pub(crate) load_time: Duration,
    /// Loads of these ids never get an answer and have no effect.
    pub(crate) hanging: BTreeSet<String>,
    /// Loads of these ids never get an answer but take effect.
    pub(crate) hanging_applied: BTreeSet<String>,
    /// Loads of these ids fail, with this status and message.
    pub(crate) failing: BTreeMap<String, (u16, String)>,
    /// Unloads of these ids fail, with this status and message.
    pub(crate) unload_failing: BTreeMap<String, (u16, String)>,
    /// Completions with these ids get no answer.
    pub(crate) hanging_uses: BTreeSet<String>,
    /// A completion with one of these ids ends the process.
    pub(crate) crashing: BTreeSet<String>,
    /// The API key that requests need, if any.
    pub(crate) api_key: Option<String>,
    /// The endpoints for loads and unloads do not exist.
    pub(crate) runtime_updating_off: bool,
    /// `/health` accepts connections and never answers.
    pub(crate) frozen: bool,
    /// `/metrics` does not exist.
    pub(crate) metrics_closed: bool,
}

#[derive(Debug, Default)]
struct FakeVllmProcess {
    adapters: BTreeMap<String, String>,
    last_used: BTreeMap<String, f64>,
}

#[derive(Debug, Default)]
struct FakeVllmState {
    config: FakeVllmConfig,
    started: u32,
    process: FakeVllmProcess,
    models_request_count: usize,
    /// Loads, unloads and completions, in order of arrival.
    requests: Vec<String>,
    loading: BTreeSet<String>,
    max_loading: usize,
    active_uses: usize,
    /// The completions in progress that get no answer.
    hanging_active_uses: usize,
    max_active_uses: usize,
}

/// The fake server, which keeps its address over restarts of its process.
#[derive(Debug)]
pub(crate) struct FakeVllm {
    address: SocketAddr,
    shared: Arc<Mutex<FakeVllmState>>,
    runtime: Arc<Mutex<Option<Runtime>>>,
}

#[derive(Clone)]
struct FakeVllmContext {
    shared: Arc<Mutex<FakeVllmState>>,
    runtime: Arc<Mutex<Option<Runtime>>>,
}

impl FakeVllm {
    pub(crate) fn start(config: FakeVllmConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Mutex::new(FakeVllmState { config, ..FakeVllmState::default() })),
            runtime: Arc::default(),
        };
        fake.serve_on(listener);
        fake
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Starts a new process without any adapters.
    pub(crate) fn restart(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let listener = loop {
            // The address is free only when the previous runtime has ended.
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        self.serve_on(listener);
    }

    fn serve_on(&self, listener: TcpListener) {
        {
            let mut shared = self.shared.lock().unwrap();
            shared.started += 1;
            shared.process = FakeVllmProcess::default();
            shared.loading.clear();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = FakeVllmContext { shared: Arc::clone(&self.shared), runtime: Arc::clone(&self.runtime) };
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router(server)).await.unwrap();
        });
        *self.runtime.lock().unwrap() = Some(runtime);
    }

    /// Ends the process, as by SIGKILL.
    pub(crate) fn kill(&self) {
        kill_runtime(&self.runtime);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.runtime.lock().unwrap().is_some()
    }

    pub(crate) fn configure(&self, change: impl FnOnce(&mut FakeVllmConfig)) {
        change(&mut self.shared.lock().unwrap().config);
    }

    /// Records a use of an adapter by a client now.
    pub(crate) fn mark_used(&self, id: &str) {
        let now = jiff::Timestamp::now().as_duration().as_secs_f64();
        self.shared.lock().unwrap().process.last_used.insert(id.to_owned(), now);
    }

    pub(crate) fn adapters(&self) -> Vec<String> {
        self.shared.lock().unwrap().process.adapters.keys().cloned().collect()
    }

    /// Returns loads, unloads and completions, in order of arrival.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.lock().unwrap().requests.clone()
    }

    pub(crate) fn count_requests(&self, request: &str) -> usize {
        self.requests().iter().filter(|received| *received == request).count()
    }

    /// Returns how often the model list was requested.
    pub(crate) fn models_request_count(&self) -> usize {
        self.shared.lock().unwrap().models_request_count
    }

    /// Unloads an adapter as another client would.
    pub(crate) fn unload_externally(&self, id: &str) {
        self.shared.lock().unwrap().process.adapters.remove(id);
    }

    /// Returns the highest number of concurrent completions.
    pub(crate) fn max_concurrent_uses(&self) -> usize {
        self.shared.lock().unwrap().max_active_uses
    }

    /// Returns the highest number of concurrent loads.
    pub(crate) fn max_concurrent_loads(&self) -> usize {
        self.shared.lock().unwrap().max_loading
    }
}

impl Drop for FakeVllm {
    fn drop(&mut self) {
        self.kill();
    }
}

fn kill_runtime(runtime: &Mutex<Option<Runtime>>) {
    if let Some(runtime) = runtime.lock().unwrap().take() {
        runtime.shutdown_background();
    }
}

fn router(server: FakeVllmContext) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/load_lora_adapter", post(load))
        .route("/v1/unload_lora_adapter", post(unload))
        .route("/v1/completions", post(completions))
        .layer(from_fn_with_state(server.clone(), authorize))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(server)
}

async fn health(State(server): State<FakeVllmContext>) {
    let frozen = server.shared.lock().unwrap().config.frozen;
    if frozen {
        std::future::pending::<()>().await;
    }
}

async fn authorize(State(server): State<FakeVllmContext>, request: Request, next: Next) -> Response {
    let (key, off) = {
        let shared = server.shared.lock().unwrap();
        (shared.config.api_key.clone(), shared.config.runtime_updating_off)
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

fn error_response(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, Json(json!({ "error": { "message": message } }))).into_response()
}

fn json_field(body: &Bytes, name: &str) -> String {
    serde_json::from_slice::<Value>(body).unwrap()[name].as_str().unwrap().to_owned()
}

async fn models(State(server): State<FakeVllmContext>) -> Response {
    let adapters = {
        let mut shared = server.shared.lock().unwrap();
        shared.models_request_count += 1;
        shared.process.adapters.clone()
    };
    let base = json!({ "id": "base", "root": "/base", "parent": null });
    let adapter = |(id, root)| json!({ "id": id, "root": root, "parent": "base" });
    let data: Vec<Value> = std::iter::once(base).chain(adapters.into_iter().map(adapter)).collect();
    Json(json!({ "data": data })).into_response()
}

async fn metrics(State(server): State<FakeVllmContext>) -> Response {
    let shared = server.shared.lock().unwrap();
    if shared.config.metrics_closed {
        return (StatusCode::NOT_FOUND, Json(json!({ "detail": "Not Found" }))).into_response();
    }
    let mut text = format!("process_start_time_seconds {}\nvllm:num_requests_running{{}} 0\n", shared.started);
    for (id, used) in &shared.process.last_used {
        let labels = format!("max_lora=\"2\",running_lora_adapters=\"{id}\",waiting_lora_adapters=\"{id}\"");
        text = format!("{text}vllm:lora_requests_info{{{labels}}} {used}\n");
    }
    text.into_response()
}

async fn load(State(server): State<FakeVllmContext>, body: Bytes) -> Response {
    let (id, path) = (json_field(&body, "lora_name"), json_field(&body, "lora_path"));
    let config = {
        let mut shared = server.shared.lock().unwrap();
        shared.requests.push(format!("load {id} {path}"));
        if shared.process.adapters.contains_key(&id) {
            return error_response(400, &format!("The lora adapter '{id}' has already been loaded."));
        }
        shared.loading.insert(id.clone());
        shared.max_loading = shared.max_loading.max(shared.loading.len());
        shared.config.clone()
    };
    if config.hanging.contains(&id) {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(config.load_time).await;
    {
        let mut shared = server.shared.lock().unwrap();
        shared.loading.remove(&id);
        if let Some((status, message)) = config.failing.get(&id) {
            return error_response(*status, message);
        }
        shared.process.adapters.insert(id.clone(), path);
    }
    if config.hanging_applied.contains(&id) {
        std::future::pending::<()>().await;
    }
    format!("Success: LoRA adapter '{id}' added successfully.").into_response()
}

async fn unload(State(server): State<FakeVllmContext>, body: Bytes) -> Response {
    let id = json_field(&body, "lora_name");
    let mut shared = server.shared.lock().unwrap();
    shared.requests.push(format!("unload {id}"));
    if let Some((status, message)) = shared.config.unload_failing.get(&id) {
        return error_response(*status, message);
    }
    match shared.process.adapters.remove(&id) {
        Some(_) => format!("Success: LoRA adapter '{id}' removed successfully.").into_response(),
        None => error_response(404, &format!("The lora adapter '{id}' cannot be found.")),
    }
}

async fn completions(State(server): State<FakeVllmContext>, body: Bytes) -> Response {
    let id = json_field(&body, "model");
    let (is_loaded, crashes, hangs) = {
        let mut shared = server.shared.lock().unwrap();
        shared.requests.push(format!("use {id}"));
        let config = &shared.config;
        (shared.process.adapters.contains_key(&id), config.crashing.contains(&id), config.hanging_uses.contains(&id))
    };
    let _active_use = ActiveUse::start(&server, hangs).await;
    // Long enough for a concurrent completion to arrive, if there is one.
    tokio::time::sleep(Duration::from_millis(2)).await;
    if hangs {
        std::future::pending::<()>().await;
    }
    if crashes {
        kill_runtime(&server.runtime);
        std::future::pending::<()>().await;
    }
    if is_loaded {
        Json(json!({ "model": id, "choices": [] })).into_response()
    } else {
        error_response(404, &format!("The model `{id}` does not exist."))
    }
}

/// Counts a completion in progress until it is dropped.
struct ActiveUse {
    server: FakeVllmContext,
    hanging: bool,
}

/// How late the server may notice that a client closed the connection of an abandoned completion before the next one.
/// Shorter than the probe timeout.
const CLOSE_DELAY: Duration = Duration::from_millis(400);

impl ActiveUse {
    async fn start(server: &FakeVllmContext, hangs: bool) -> Self {
        let before = {
            let mut shared = server.shared.lock().unwrap();
            let before = shared.hanging_active_uses;
            shared.active_uses += 1;
            shared.hanging_active_uses += usize::from(hangs);
            before
        };
        let active_use = Self { server: server.clone(), hanging: hangs };
        let own = usize::from(hangs);
        let previous_closed = async {
            while server.shared.lock().unwrap().hanging_active_uses > own {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if before > 0 {
            drop(tokio::time::timeout(CLOSE_DELAY, previous_closed).await);
        }
        let mut shared = server.shared.lock().unwrap();
        shared.max_active_uses = shared.max_active_uses.max(shared.active_uses);
        active_use
    }
}

impl Drop for ActiveUse {
    fn drop(&mut self) {
        let mut shared = self.server.shared.lock().unwrap();
        shared.active_uses -= 1;
        shared.hanging_active_uses -= usize::from(self.hanging);
    }
}
