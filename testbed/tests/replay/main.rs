//! Plays the recording of vLLM 0.32.0 against the simulator and compares the answers.
//!
//! There are two recordings: a long session with eight servers, each set up in its way ([`transcript`]), and one with
//! the odd requests of one server ([`edges`]). A simulator is started for each server, with the folders that the
//! recording loads from ([`stage`]), and asked the same things in the same order, so that most exchanges find the state
//! that the ones before them have left. Exchanges that ran at the same time were recorded as they ended; where the
//! recorded order does not lead to the recorded answer (an adapter that had to be loaded is not, or the reverse), that
//! state is arranged first.
//!
//! Compared: status, content type or its absence, and the body: texts exactly; JSON with all fields in their order,
//! token counts, model names and sources; of a stream its first three and last four events and how many there were; of
//! `/metrics` the names in the recorded beginning. Not compared because it varies: ids, times, generated text
//! (but that equal texts stay equal and different ones different), the hash in `system_fingerprint`, the folder that
//! paths begin with, the `/docs` page. Where the recording says that a connection was refused, cut, or got no answer
//! within 300 s, so must the simulator (300 ms).
//!
//! Left out: what `left_out` of each recording names, with the reason; both are printed. Not looked at: how long an answer took.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test, which says what it compared")]

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

/// Between which lines one server ran, and how it was set up.
type ServerSession = (usize, usize, fn() -> SimulatorConfig);

/// A recording, and how it is played.
struct SessionRecording {
    exchanges: Vec<RecordedExchange>,
    sessions: &'static [ServerSession],
    /// Lines that are not played, and why.
    skipped: &'static [(usize, &'static str)],
    /// What happened to a server or its files before a line.
    before_line: fn(usize, &WorkingDir, &Simulator),
    /// Before these lines the server had ended.
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
            (630, "two adapters at a time (--max-loras): the simulator lets all generate at once"),
            (631, "as the line before, whose queued request kills the server"),
            (632, "as the lines before: the server is dead"),
        ],
        before_line: |line, stage, simulator| match line {
            506 => stage.remove_dir("work/gone"),
            529 => stage.copy_adapter("a3", "work/sw"),
            569 => simulator.update_knobs(|knobs| knobs.token_millis = 5),
            634 => simulator.update_knobs(|knobs| knobs.mode = ServingMode::EngineHangs),
            650 => simulator.update_knobs(|knobs| knobs.mode = ServingMode::Draining),
            652 => simulator.update_knobs(|knobs| knobs.mode = ServingMode::Serving),
            _ => {}
        },
        dead_before: &[518],
    }
}

/// The odd requests: bodies that are wrong in all ways, paths and methods that are not served, the moments after the
/// death of an engine. One server.
fn edges() -> SessionRecording {
    SessionRecording {
        exchanges: recording::load_edges(),
        sessions: &[(1, 111, SimulatorConfig::default)],
        skipped: &[(107, "the same moment as the line before: tests/sim.rs has it")],
        before_line: |line, stage, _| {
            if line == 106 {
                stage.remove_dir("work/gone");
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
async fn the_simulator_answers_as_vllm_was_recorded() {
    assert_eq!(play(transcript()).await, 648);
}

#[tokio::test]
async fn the_simulator_answers_odd_requests_as_vllm_was_recorded() {
    assert_eq!(play(edges()).await, 110);
}

/// Plays a recording; how many exchanges were compared.
async fn play(recording: SessionRecording) -> usize {
    let SessionRecording { exchanges, sessions, skipped: left_out, before_line: before, dead_before: dead } = recording;
    let mut differences = Vec::new();
    let (mut compared, mut arranged) = (0, 0);
    for (first, last, config) in sessions {
        let mut replay = Replay::start(config()).await;
        for line in (*first..=*last).filter(|line| left_out.iter().all(|(left_out, _)| left_out != line)) {
            let exchange = &exchanges[line - 1];
            before(line, &replay.working_dir, &replay.simulator);
            if dead.contains(&line) {
                replay.simulator.wait_exit().await;
            }
            if let Err(difference) = replay.play(exchange).await {
                differences.push(format!("line {line} ({}): {difference}", exchange.label));
            }
            compared += 1;
        }
        arranged += replay.prepared;
    }
    println!("{} recorded, {compared} compared, {arranged} of them after arranging the state", exchanges.len());
    for (line, reason) in left_out {
        println!("left out: line {line}: {reason}");
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
    compared
}

/// One recorded server's session, played.
struct Replay {
    working_dir: WorkingDir,
    simulator: Simulator,
    client: Client<HttpConnector, Full<Bytes>>,
    text_pairs: TextPairs,
    /// How many exchanges did not find the state that they were recorded in.
    prepared: usize,
}

impl Replay {
    async fn start(config: SimulatorConfig) -> Self {
        let stage = WorkingDir::new();
        let config = SimulatorConfig { working_dir: stage.path().to_owned(), ..config };
        Self {
            working_dir: stage,
            simulator: Simulator::start(config).await.expect("a free port"),
            client: Client::builder(TokioExecutor::new()).build_http(),
            text_pairs: TextPairs::default(),
            prepared: 0,
        }
    }

    async fn play(&mut self, exchange: &RecordedExchange) -> Result<(), String> {
        let presumed = RequiredState::from_exchange(exchange);
        let changed = self.prepare_state(&presumed).await;
        let played = match (&exchange.stream, exchange.status) {
            (_, None) => self.compare_no_response(exchange).await,
            (Some(stream), Some(_)) if !stream.response_last.ends_with("data: [DONE]\n\n") => {
                self.compare_cut_stream(exchange, stream).await
            }
            (Some(stream), Some(_)) => self.compare_stream(exchange, stream).await,
            (None, Some(_)) => self.compare_response(exchange).await,
        };
        if changed {
            self.prepared += 1;
            let ran_beside_others = ["concurrent", "stream", "queued"].iter().any(|word| exchange.label.contains(word));
            assert!(ran_beside_others, "{:?} was recorded alone and must find its state", exchange.label);
            if let (RequiredState::Loaded(name), Some(_)) = (presumed, exchange.request.body_field("model")) {
                // A completion is recorded when it ends; meanwhile its adapter was unloaded, and so it is again.
                self.prepare_state(&RequiredState::NotLoaded(name)).await;
            }
        }
        played
    }

    /// A whole answer.
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

    /// A stream that ran to its end.
    async fn compare_stream(&mut self, exchange: &RecordedExchange, recorded: &StreamSummary) -> Result<(), String> {
        let simulated = self.fetch_body(exchange).await?;
        let [first, last, all] = [&recorded.response_first, &recorded.response_last, &simulated]
            .map(|stream| compare::normalize_events(stream, "no folder is shown in streams"));
        check_equal(&first[..], all.get(..first.len()).unwrap_or_default())?;
        check_equal(&last[..], &all[all.len().saturating_sub(last.len())..])?;
        // vLLM now and then puts two tokens into one event; an event and the blank line after it are two lines.
        let merged = all.len().checked_sub(recorded.n_lines / 2);
        if matches!(merged, Some(0 | 1)) {
            Ok(())
        } else {
            Err(format!("{} events for {} lines", all.len(), recorded.n_lines))
        }
    }

    /// A stream in the middle of which the server was killed.
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
        assert!(self.client.request(crash).await.is_err(), "a crash is not answered");
        assert!(body.collect().await.is_err(), "the stream is broken off");
        check_equal(&recorded[..], &compare::normalize_events(&simulated, "-")[..recorded.len()])
    }

    /// A request that a dead server refused, or that got no answer.
    async fn compare_no_response(&mut self, exchange: &RecordedExchange) -> Result<(), String> {
        let answer = timeout(Duration::from_millis(300), self.send(exchange)).await;
        match (exchange.response.as_deref().unwrap_or_default(), answer) {
            ("EXC TimeoutError('timed out')", Err(_out_of_time)) => Ok(()),
            (text, Ok(Err(_))) if text.starts_with("EXC Connection") => Ok(()),
            (text, answer) => Err(format!("{answer:?} for {text}")),
        }
    }

    async fn fetch_body(&self, exchange: &RecordedExchange) -> Result<String, String> {
        let (head, body) = self.send(exchange).await?.into_parts();
        let content_type = head.headers.get("content-type").map(|value| value.to_str().expect("ASCII").to_owned());
        check_equal(&(exchange.status, exchange.content_type.clone()), &(Some(head.status.as_u16()), content_type))?;
        let body = body.collect().await.map_err(|error| format!("broke off: {error}"))?.to_bytes();
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

    /// Loads and unloads what an exchange presumes; whether anything had to be.
    async fn prepare_state(&mut self, presumed: &RequiredState) -> bool {
        let loaded = self.simulator.adapters();
        let is_loaded = |name: &str| loaded.iter().any(|(known, _)| known == name);
        let (unload, load) = match presumed {
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
        let answer = self.client.request(request).await.expect("the simulator answers");
        assert!(answer.status().is_success(), "{path} {body}: {}", answer.status());
    }
}

/// What an answer tells about the adapters that the server knew before.
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
