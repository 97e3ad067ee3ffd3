//! Plays the recording of vLLM 0.32.0 against the simulator and compares the responses.
//!
//! There are two recordings: a long session with eight servers, each with its own configuration ([`transcript`]), and
//! one with unusual requests to one server ([`edges`]). For each server a simulator is started, with the folders that
//! the recording loads from ([`working_dir`]), and gets the same requests in the same order, so that most exchanges
//! find the state that earlier ones have left. Concurrent exchanges were recorded in the order in which they ended;
//! where that order does not lead to the recorded response (an adapter that had to be loaded is not, or the reverse),
//! the test prepares the state first.
//!
//! Compared are status, content type or its absence, and the body: texts exactly; JSON with all fields in their order,
//! token counts, model names and sources; of a stream the first three and the last four events and their number; of
//! `/metrics` the names in the recorded beginning. Not compared, because it varies: ids, times, generated text (but
//! equal texts must stay equal and different ones different), the hash in `system_fingerprint`, the folder that paths
//! begin with, and the `/docs` page. Where the recording has a connection that was refused, cut, or got no response
//! within 300 s, the simulator must behave the same way (within 300 ms).
//!
//! Skipped are the lines in `skipped` of each recording, with the reason; both are printed. Response times are not
//! compared.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test that prints what it compared")]

mod compare;
mod recording;
mod working_dir;

use std::time::Duration;

use bytes::Bytes;
use compare::TextPairs;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use recording::{RecordedExchange, StreamSummary};
use rollora_testbed::sim::{Knobs, ServingMode, Simulator, SimulatorConfig};
use serde_json::{Value, json};
use tokio::time::timeout;
use working_dir::WorkingDir;

/// First and last line of a server's session, and its configuration.
type ServerSession = (usize, usize, fn() -> SimulatorConfig);

/// A recording, and how to play it.
struct SessionRecording {
    exchanges: Vec<RecordedExchange>,
    sessions: &'static [ServerSession],
    /// Lines that are not played, with the reason.
    skipped: &'static [(usize, &'static str)],
    /// Changes the server or its files before a line, as happened during the recording.
    before_line: fn(usize, &WorkingDir, &Simulator),
    /// Lines before which the server had exited.
    dead_before: &'static [usize],
}

/// The long session: adapters, traffic, failures, eight servers.
fn transcript() -> SessionRecording {
    SessionRecording {
        exchanges: recording::load_transcript(),
        sessions: &[
            (1, 521, SimulatorConfig::default),
            (522, 569, SimulatorConfig::default),
            (570, 604, config_with_key_and_rank_32),
            (605, 632, SimulatorConfig::default),
            (633, 636, SimulatorConfig::default),
            (637, 641, config_without_runtime_updating),
            (642, 646, config_without_lora),
            (647, 652, SimulatorConfig::default),
        ],
        skipped: &[
            (565, "whether the tensors of an adapter fit the model: the simulator has no model"),
            (630, "two adapters at a time (--max-loras): the simulator batches all of them"),
            (631, "as the line before, whose queued request crashes the server"),
            (632, "as the lines before: the server is dead"),
        ],
        before_line: |line, working_dir, simulator| match line {
            506 => working_dir.remove_dir("work/gone"),
            529 => working_dir.copy_adapter("a3", "work/sw"),
            569 => simulator.update_knobs(|knobs| knobs.token_millis = 5),
            634 => simulator.update_knobs(|knobs| knobs.mode = ServingMode::EngineHangs),
            650 => simulator.update_knobs(|knobs| knobs.mode = ServingMode::Draining),
            652 => simulator.update_knobs(|knobs| knobs.mode = ServingMode::Serving),
            _ => {}
        },
        dead_before: &[518],
    }
}

/// Unusual requests: bodies that are invalid in all ways, paths and methods that are not served, and the moments after
/// an engine's failure. One server.
fn edges() -> SessionRecording {
    SessionRecording {
        exchanges: recording::load_edges(),
        sessions: &[(1, 111, SimulatorConfig::default)],
        skipped: &[(107, "sent at the same moment as the line before: tests/sim.rs covers it")],
        before_line: |line, working_dir, _| {
            if line == 106 {
                working_dir.remove_dir("work/gone");
            }
        },
        dead_before: &[111],
    }
}

fn config_with_key_and_rank_32() -> SimulatorConfig {
    let knobs = Knobs { api_key: Some("secret".to_owned()), ..Knobs::default() };
    SimulatorConfig { max_lora_rank: 32, knobs, ..SimulatorConfig::default() }
}

fn config_without_runtime_updating() -> SimulatorConfig {
    let lora_modules = vec![("a1".to_owned(), "tiny/adapters/a1".to_owned())];
    SimulatorConfig { runtime_updating: false, lora_modules, ..SimulatorConfig::default() }
}

fn config_without_lora() -> SimulatorConfig {
    SimulatorConfig { enable_lora: false, ..SimulatorConfig::default() }
}

#[tokio::test]
async fn simulator_matches_the_recorded_session() {
    assert_eq!(play(transcript()).await, 648);
}

#[tokio::test]
async fn simulator_matches_the_recorded_edge_cases() {
    assert_eq!(play(edges()).await, 110);
}

/// Plays a recording; returns the number of compared exchanges.
async fn play(recording: SessionRecording) -> usize {
    let SessionRecording { exchanges, sessions, skipped, before_line, dead_before } = recording;
    let mut differences = Vec::new();
    let (mut compared, mut prepared) = (0, 0);
    for (first, last, config) in sessions {
        let mut replay = Replay::start(config()).await;
        for line in (*first..=*last).filter(|line| skipped.iter().all(|(skipped, _)| skipped != line)) {
            let exchange = &exchanges[line - 1];
            before_line(line, &replay.working_dir, &replay.simulator);
            if dead_before.contains(&line) {
                replay.simulator.wait_exit().await;
            }
            if let Err(difference) = replay.play(exchange).await {
                differences.push(format!("line {line} ({}): {difference}", exchange.label));
            }
            compared += 1;
        }
        prepared += replay.prepared;
    }
    println!("{} recorded, {compared} compared, {prepared} of them after preparing the state", exchanges.len());
    for (line, reason) in skipped {
        println!("skipped line {line}: {reason}");
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
    compared
}

/// Replays the session of one recorded server.
struct Replay {
    working_dir: WorkingDir,
    simulator: Simulator,
    client: Client<HttpConnector, Full<Bytes>>,
    text_pairs: TextPairs,
    /// Number of exchanges whose state had to be prepared.
    prepared: usize,
}

impl Replay {
    async fn start(config: SimulatorConfig) -> Self {
        let working_dir = WorkingDir::new();
        let config = SimulatorConfig { working_dir: working_dir.path().to_owned(), ..config };
        Self {
            working_dir,
            simulator: Simulator::start(config).await.expect("a free port"),
            client: Client::builder(TokioExecutor::new()).build_http(),
            text_pairs: TextPairs::default(),
            prepared: 0,
        }
    }

    async fn play(&mut self, exchange: &RecordedExchange) -> Result<(), String> {
        let required = RequiredState::from_exchange(exchange);
        let changed = self.prepare_state(&required).await;
        let result = match (&exchange.stream, exchange.status) {
            (_, None) => self.compare_no_response(exchange).await,
            (Some(stream), Some(_)) if !stream.response_last.ends_with("data: [DONE]\n\n") => {
                self.compare_cut_stream(exchange, stream).await
            }
            (Some(stream), Some(_)) => self.compare_stream(exchange, stream).await,
            (None, Some(_)) => self.compare_response(exchange).await,
        };
        if changed {
            self.prepared += 1;
            let ran_concurrently = ["concurrent", "stream", "queued"].iter().any(|word| exchange.label.contains(word));
            assert!(
                ran_concurrently,
                "{:?} was recorded without concurrent requests and must find its state",
                exchange.label
            );
            if let (RequiredState::Loaded(name), Some(_)) = (required, exchange.request.body_field("model")) {
                // A completion is recorded when it ends. Its adapter was unloaded meanwhile, so unload it again.
                self.prepare_state(&RequiredState::NotLoaded(name)).await;
            }
        }
        result
    }

    /// Compares a response that is not streamed.
    async fn compare_response(&mut self, exchange: &RecordedExchange) -> Result<(), String> {
        let recorded = exchange.response.as_deref().unwrap_or_default();
        let simulated = self.fetch_body(exchange).await?;
        match exchange.request.path.as_str() {
            "/docs" => Ok(()),
            "/metrics" => {
                let (recorded, simulated) = (compare::series_names(recorded), compare::series_names(&simulated));
                check_equal(&recorded[..], simulated.get(..recorded.len()).unwrap_or_default())
            }
            "/v1/models" if serde_json::from_str::<Value>(recorded).is_err() => {
                let (recorded, simulated) =
                    (compare::mask_variable_parts(recorded), compare::mask_variable_parts(&simulated));
                check_equal(recorded.as_str(), simulated.get(..recorded.len()).unwrap_or_default())
            }
            _ => {
                let folder = self.working_dir.path().display().to_string();
                check_equal(&compare::normalize(recorded, &folder), &compare::normalize(&simulated, &folder))?;
                self.text_pairs.check_pair(&exchange.request.body, recorded, &simulated)
            }
        }
    }

    /// Compares a complete stream.
    async fn compare_stream(&mut self, exchange: &RecordedExchange, recorded: &StreamSummary) -> Result<(), String> {
        let simulated = self.fetch_body(exchange).await?;
        let [first, last, all] = [&recorded.response_first, &recorded.response_last, &simulated]
            .map(|stream| compare::normalize_events(stream, "no folder is shown in streams"));
        check_equal(&first[..], all.get(..first.len()).unwrap_or_default())?;
        check_equal(&last[..], &all[all.len().saturating_sub(last.len())..])?;
        // vLLM sometimes merges two tokens into one event. Each event is followed by a blank line.
        let merged = all.len().checked_sub(recorded.n_lines / 2);
        if matches!(merged, Some(0 | 1)) {
            Ok(())
        } else {
            Err(format!("{} events for {} lines", all.len(), recorded.n_lines))
        }
    }

    /// Compares a stream during which the server was killed.
    async fn compare_cut_stream(
        &mut self,
        exchange: &RecordedExchange,
        recorded: &StreamSummary,
    ) -> Result<(), String> {
        let (head, mut body) = self.send(exchange).await?.into_parts();
        check_equal(&exchange.status, &Some(head.status.as_u16()))?;
        let recorded = compare::normalize_events(&recorded.response_first, "no folder is shown in streams");
        let mut simulated = String::new();
        while compare::normalize_events(&simulated, "-").len() < recorded.len() {
            let frame = body.frame().await.ok_or("ended too early")?.map_err(|error| error.to_string())?;
            simulated += &String::from_utf8_lossy(frame.data_ref().ok_or("no data")?);
        }
        self.simulator.update_knobs(|knobs| knobs.mode = ServingMode::Serving);
        let crash =
            Request::post(format!("{}/sim/crash", self.simulator.url())).body(Full::default()).expect("a request");
        assert!(self.client.request(crash).await.is_err(), "a crash must not send a response");
        assert!(body.collect().await.is_err(), "the stream must be cut");
        check_equal(&recorded[..], &compare::normalize_events(&simulated, "-")[..recorded.len()])
    }

    /// Compares a request that was refused by a dead server, or got no response.
    async fn compare_no_response(&mut self, exchange: &RecordedExchange) -> Result<(), String> {
        let response = timeout(Duration::from_millis(300), self.send(exchange)).await;
        match (exchange.response.as_deref().unwrap_or_default(), response) {
            ("EXC TimeoutError('timed out')", Err(_out_of_time)) => Ok(()),
            (text, Ok(Err(_))) if text.starts_with("EXC Connection") => Ok(()),
            (text, response) => Err(format!("{response:?} for {text}")),
        }
    }

    async fn fetch_body(&self, exchange: &RecordedExchange) -> Result<String, String> {
        let (head, body) = self.send(exchange).await?.into_parts();
        let content_type = head.headers.get("content-type").map(|value| value.to_str().expect("ASCII").to_owned());
        check_equal(&(exchange.status, exchange.content_type.clone()), &(Some(head.status.as_u16()), content_type))?;
        let body = body.collect().await.map_err(|error| format!("the body was cut: {error}"))?.to_bytes();
        String::from_utf8(body.to_vec()).map_err(|error| error.to_string())
    }

    async fn send(&self, exchange: &RecordedExchange) -> Result<Response<Incoming>, String> {
        let recorded = &exchange.request;
        let uri = format!("{}{}", self.simulator.url(), recorded.path);
        let mut request = Request::builder().method(recorded.method.as_str()).uri(uri);
        if !recorded.body.is_null() && !recorded.headers.contains_key("Content-Type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &recorded.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::from(recorded.body_bytes())).expect("a request");
        self.client.request(request).await.map_err(|error| error.to_string())
    }

    /// Loads and unloads adapters to reach the required state. Returns whether anything had to change.
    async fn prepare_state(&mut self, required: &RequiredState) -> bool {
        let loaded = self.simulator.adapters();
        let is_loaded = |name: &str| loaded.iter().any(|(known, _)| known == name);
        let (unload, load) = match required {
            RequiredState::Loaded(name) if !is_loaded(name) => {
                (vec![], vec![(name.clone(), working_dir::adapter_source(name))])
            }
            RequiredState::NotLoaded(name) if is_loaded(name) => (vec![name.clone()], vec![]),
            RequiredState::Exactly(adapters) if *adapters != loaded => {
                (loaded.into_iter().map(|(name, _)| name).collect(), adapters.clone())
            }
            _ => return false,
        };
        for name in unload {
            self.post("/v1/unload_lora_adapter", &json!({ "lora_name": name })).await;
        }
        for (name, source) in load {
            self.post("/v1/load_lora_adapter", &json!({ "lora_name": name, "lora_path": source })).await;
        }
        true
    }

    async fn post(&self, path: &str, body: &Value) {
        let request = Request::post(format!("{}{path}", self.simulator.url()))
            .header("content-type", "application/json")
            .header("authorization", "Bearer secret")
            .body(Full::from(body.to_string()))
            .expect("a request");
        let response = self.client.request(request).await.expect("the simulator responds");
        assert!(response.status().is_success(), "{path} {body}: {}", response.status());
    }
}

/// The adapters that must have been loaded before, according to a recorded response.
enum RequiredState {
    Any,
    Loaded(String),
    NotLoaded(String),
    Exactly(Vec<(String, String)>),
}

impl RequiredState {
    fn from_exchange(exchange: &RecordedExchange) -> Self {
        let RecordedExchange { request, status: Some(status), response, .. } = exchange else { return Self::Any };
        let response = response.as_deref().unwrap_or_default();
        let name = request.body_field("lora_name").or_else(|| request.body_field("model")).unwrap_or("tiny");
        match (request.path.as_str(), status) {
            _ if ["tiny", ""].contains(&name) && request.path != "/v1/models" => Self::Any,
            ("/v1/load_lora_adapter", 200) if request.body["load_inplace"] == true => Self::Any,
            ("/v1/load_lora_adapter", 200) => Self::NotLoaded(name.to_owned()),
            ("/v1/load_lora_adapter", 400) if response.contains("already been loaded") => Self::Loaded(name.to_owned()),
            ("/v1/unload_lora_adapter" | "/v1/chat/completions" | "/v1/completions", 200) => {
                Self::Loaded(name.to_owned())
            }
            ("/v1/unload_lora_adapter" | "/v1/chat/completions" | "/v1/completions", 404)
                if !response.contains("Not Found") =>
            {
                Self::NotLoaded(name.to_owned())
            }
            ("/v1/models", 200) => {
                serde_json::from_str(response).map_or(Self::Any, |models| Self::Exactly(listed_adapters(&models)))
            }
            _ => Self::Any,
        }
    }
}

fn listed_adapters(models: &Value) -> Vec<(String, String)> {
    let text = |card: &Value, field: &str| card[field].as_str().expect("a text").to_owned();
    let adapters = models["data"].as_array().expect("a list").iter().filter(|card| !card["parent"].is_null());
    adapters.map(|card| (text(card, "id"), text(card, "root"))).collect()
}

fn check_equal<T: PartialEq + std::fmt::Debug + ?Sized>(recorded: &T, simulated: &T) -> Result<(), String> {
    if recorded == simulated { Ok(()) } else { Err(format!("\n  recorded  {recorded:?}\n  simulated {simulated:?}")) }
}
