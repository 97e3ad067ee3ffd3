//! `rollora-sidecar` with a real vLLM on the CPU that requires an API key: load failures, use, an unload during a
//! stream, and a restart of the server. One server serves all checks, because its start takes long.

use crate::run_stats::print_line;
use anyhow::{Context as _, Result, ensure};
use http_body_util::BodyExt as _;
use hyper::header::{AUTHORIZATION, HeaderValue};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{AdapterState, AdapterStatus, SidecarStatus},
};
use rollora_testbed::{
    http::{self, HttpConnection, ListenAddress},
    ports::ReservedPort,
    process::{ChildProcess, built_program},
    server::{ServerKind, VllmServer},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A stream of this many tokens takes seconds.
const STREAM_TOKENS: usize = 900;
const API_KEY: &str = "secret";
/// The sidecar unloads an adapter once it was idle for this long.
const UNLOAD_GRACE: Duration = Duration::from_secs(2);

#[expect(clippy::disallowed_methods, reason = "times are what is measured")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the server's own times are compared with it")]
fn timestamp_now() -> Timestamp {
    Timestamp::now()
}

/// The sidecar process with its adapters file, key file and state folder.
struct RealSidecar {
    folder: TempDir,
    port: ReservedPort,
    vllm: u16,
    process: Option<ChildProcess>,
}

impl RealSidecar {
    fn new(vllm: u16) -> Result<Self> {
        Ok(Self { folder: TempDir::new()?, port: ReservedPort::reserve()?, vllm, process: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a new file and renames it into place, as an editor does.
    fn write_config(&self, exist: &[(&str, &str)], not_exist: &[(&str, &str)]) -> Result<()> {
        let list = |entries: &[(&str, &str)]| -> String {
            let entry = |(id, source): &(&str, &str)| format!("\n    - id: {id}\n      source: {source}");
            if entries.is_empty() { " []".to_owned() } else { entries.iter().map(entry).collect() }
        };
        let (port, exist, not_exist) = (self.vllm, list(exist), list(not_exist));
        let text = format!(
            "vLLMLoRAConfig:\n  host: 127.0.0.1\n  port: {port}\n  ensureExist:\n    models:{exist}\n  \
             ensureNotExist:\n    models:{not_exist}\n"
        );
        fs::write(self.path("fresh"), text)?;
        Ok(fs::rename(self.path("fresh"), self.path("configmap.yaml"))?)
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(built_program("rollora-sidecar")?);
        command.arg("--config").arg(self.path("configmap.yaml"));
        command.arg("--api-key-file").arg(self.path("key")).arg("--state-dir").arg(self.path("state"));
        command.args(["--address", "127.0.0.1", "--metrics-port", &self.port.number().to_string()]);
        command.args(["--unload-grace", &format!("{}s", UNLOAD_GRACE.as_secs())]);
        self.process = Some(ChildProcess::start("sidecar", command, self.folder.path())?);
        Ok(())
    }

    fn address(&self) -> ListenAddress {
        self.port.address().into()
    }

    async fn status(&self) -> Result<SidecarStatus> {
        http::get_json(&self.address(), "/status").await
    }

    async fn is_ready(&self) -> bool {
        let answer = http::send_request(&self.address(), http::request("GET", "/readyz", None)).await;
        answer.is_ok_and(|(status, _)| status == 200)
    }

    /// Waits until the status satisfies a predicate.
    async fn wait_for_status(&self, what: &str, reached: impl Fn(&SidecarStatus) -> bool) -> Result<SidecarStatus> {
        let began = now();
        loop {
            let status = self.status().await;
            match status {
                Ok(status) if reached(&status) => return Ok(status),
                status => {
                    let log = || self.process.as_ref().map(|process| process.log_tail(40)).unwrap_or_default();
                    let in_time = began.elapsed() < Duration::from_secs(30);
                    ensure!(in_time, "not observed: {what}\n{status:#?}\n{}", log());
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn wait_for_state(&self, id: &str, state: AdapterState) -> Result<AdapterStatus> {
        let reached = |status: &SidecarStatus| find_adapter(status, id).is_some_and(|adapter| adapter.state == state);
        let status = self.wait_for_status(&format!("{id} {state:?}"), reached).await?;
        find_adapter(&status, id).cloned().context("the adapter is no longer in the status")
    }

    async fn wait_until_ready(&self) -> Result<()> {
        self.wait_for_status("ready", |status| status.readiness.ready).await?;
        ensure!(self.is_ready().await, "/readyz contradicts /status");
        Ok(())
    }
}

fn find_adapter<'a>(status: &'a SidecarStatus, id: &str) -> Option<&'a AdapterStatus> {
    status.adapters.iter().find(|adapter| adapter.id == AdapterId::new(id).unwrap_or_else(|_| adapter.id.clone()))
}

fn last_error(adapter: &AdapterStatus) -> (&str, &str) {
    adapter.last_error.as_ref().map_or(("", ""), |error| (error.reason.as_str(), error.message.as_str()))
}

/// Streams a completion of many tokens, and returns it with the time of its last byte.
async fn stream_completion(vllm: &VllmServer, id: &str) -> Result<(String, Instant)> {
    let body = json!({
        "model": id, "prompt": "hello", "max_tokens": STREAM_TOKENS, "ignore_eos": true, "temperature": 0, "stream": true,
    });
    let mut connection = HttpConnection::open(&address(vllm)?).await?;
    let answer = connection.send(authorized_request("/v1/completions", &body)?).await?;
    ensure!(answer.status() == 200, "a stream of {id}: {}", answer.status());
    let body = answer.into_body().collect().await.context("the stream was truncated")?.to_bytes();
    Ok((String::from_utf8(body.to_vec())?, now()))
}

fn address(vllm: &VllmServer) -> Result<ListenAddress> {
    Ok(ListenAddress::Tcp(vllm.url().trim_start_matches("http://").parse()?))
}

fn authorized_request(path: &str, body: &Value) -> Result<hyper::Request<http_body_util::Full<bytes::Bytes>>> {
    let mut request = http::request("POST", path, Some(body));
    request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {API_KEY}"))?);
    Ok(request)
}

/// Returns the text of a complete stream, and fails if the stream is truncated.
fn complete_stream_text(stream: &str) -> Result<String> {
    ensure!(stream.trim_end().ends_with("data: [DONE]"), "the stream has no end mark: {stream:.300}");
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: {"));
    let events = events.map(|event| serde_json::from_str::<Value>(&format!("{{{event}")));
    let events: Vec<Value> = events.collect::<Result<_, _>>()?;
    // vLLM sometimes puts two tokens into one event.
    ensure!(events.len() > STREAM_TOKENS / 2, "{} events of {STREAM_TOKENS} tokens", events.len());
    let last = events.iter().rev().find_map(|event| event["choices"][0]["finish_reason"].as_str());
    ensure!(last == Some("length"), "the finish reason is {last:?}");
    Ok(events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect())
}

#[test]
fn sidecar_manages_adapters_of_a_real_vllm() {
    let Some(home) = std::env::var_os("ROLLORA_VLLM_HOME").map(PathBuf::from) else {
        print_line(
            "skipped: the sidecar with a real vLLM, because ROLLORA_VLLM_HOME is not set (`cargo xtask test` sets it)",
        );
        return;
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if let Err(error) = runtime.block_on(run_with_real_vllm(home)) {
        panic!("{error:?}");
    }
}

async fn run_with_real_vllm(home: PathBuf) -> Result<()> {
    let logs = TempDir::new()?;
    let mut vllm = VllmServer::spawn("vllm", ServerKind::Real { home }, Some(API_KEY), logs.path())?;
    let port = vllm.url().rsplit_once(':').context("a port")?.1.parse()?;
    let mut sidecar = RealSidecar::new(port)?;
    sidecar.write_config(&[("a4", "tiny/adapters/a4")], &[])?;
    fs::write(sidecar.path("key"), "wrong\n")?;
    sidecar.start()?;
    let away =
        sidecar.wait_for_status("vLLM is not reachable yet", |status| status.readiness.reason == "Unreachable").await?;
    ensure!(away.server.is_none(), "{away:#?}");
    vllm.wait_ready().await?;

    check_key_replacement(&sidecar).await?;
    check_load_failures(&sidecar).await?;
    check_unload_after_grace(&sidecar, &vllm).await?;
    check_stream_survives_unload(&sidecar, &vllm).await?;
    check_server_restart(&sidecar, &mut vllm).await
}

async fn check_key_replacement(sidecar: &RealSidecar) -> Result<()> {
    let refused =
        |status: &SidecarStatus| status.problem.as_ref().is_some_and(|problem| problem.reason == "Unauthorized");
    sidecar.wait_for_status("the key is refused", refused).await?;
    ensure!(!sidecar.is_ready().await, "ready with a wrong key");
    fs::write(sidecar.path("key"), format!("{API_KEY}\n"))?;
    sidecar.wait_for_state("a4", AdapterState::Verified).await?;
    sidecar.wait_until_ready().await
}

async fn check_load_failures(sidecar: &RealSidecar) -> Result<()> {
    let listed = [
        ("absent", "/nonexistent/adapter"),
        ("rank32", "tiny/adapters/rank32"),
        ("a4", "tiny/adapters/a4"),
        ("a6", "tiny/adapters/a6"),
    ];
    sidecar.write_config(&listed, &[])?;
    sidecar.wait_for_state("a6", AdapterState::Verified).await?;
    let absent = sidecar.wait_for_state("absent", AdapterState::Failed).await?;
    let (reason, words) = last_error(&absent);
    ensure!(reason == "AdapterNotFound" && words.contains("/nonexistent/adapter"), "{absent:#?}");
    let rank = sidecar.wait_for_state("rank32", AdapterState::Failed).await?;
    let (reason, words) = last_error(&rank);
    ensure!(reason == "RankTooHigh" && words.contains("rank 32") && words.contains("at most 16"), "{rank:#?}");
    ensure!(rank.attempts > 0 && rank.next_try.is_some(), "{rank:#?}");
    sidecar.wait_until_ready().await
}

async fn check_unload_after_grace(sidecar: &RealSidecar, vllm: &VllmServer) -> Result<()> {
    let began = timestamp_now();
    let (streamed, unlisted) = tokio::join!(stream_completion(vllm, "a6"), async {
        // Unlists the adapter in the middle of the stream.
        sidecar
            .wait_for_status("the stream has run for 300 ms", |_| timestamp_now() > began + Duration::from_millis(300))
            .await?;
        sidecar.write_config(&[("a4", "tiny/adapters/a4")], &[("a6", "tiny/adapters/a6")])?;
        sidecar.wait_for_state("a6", AdapterState::Unloading).await?;
        anyhow::Ok(now())
    });
    let ((streamed, streamed_until), unlisted) = (streamed?, unlisted?);
    let ended = timestamp_now();
    complete_stream_text(&streamed)?;
    ensure!(unlisted < streamed_until, "the stream ended before the adapter was unlisted");
    ensure!(vllm.loaded_adapters().await?.contains("a6"), "unloaded within the grace after its last use");
    let gone = sidecar.wait_for_state("a6", AdapterState::Gone).await?;
    let unloaded = timestamp_now();
    let used = gone.last_used.context("the status has no time of the last use")?;
    print_line(&format!("last use: {used}, stream from {began} to {ended}, unloaded {unloaded}"));
    let slack = Duration::from_millis(1500);
    ensure!(began < used && used < ended + slack && ended < used + slack, "last use {used}, streamed until {ended}");
    ensure!(unloaded > used + UNLOAD_GRACE, "unloaded {unloaded}, last use {used}");
    ensure!(!vllm.loaded_adapters().await?.contains("a6"), "reported as unloaded, but still in /v1/models");
    Ok(())
}

async fn check_stream_survives_unload(sidecar: &RealSidecar, vllm: &VllmServer) -> Result<()> {
    let undisturbed = complete_stream_text(&stream_completion(vllm, "a4").await?.0)?;
    let (streamed, unloaded) = tokio::join!(stream_completion(vllm, "a4"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let request = authorized_request("/v1/unload_lora_adapter", &json!({ "lora_name": "a4" }))?;
        let (status, _) = http::send_request(&address(vllm)?, request).await?;
        anyhow::Ok((status, now()))
    });
    let ((streamed, streamed_until), (status, unloaded)) = (streamed?, unloaded?);
    ensure!(status == 200 && unloaded < streamed_until, "{status}: the adapter was not unloaded during the stream");
    let streamed = complete_stream_text(&streamed)?;
    ensure!(streamed == undisturbed, "the unload changed the text of the stream");
    // The adapter is still listed: the next poll of the models shows that it is missing, and the sidecar loads it
    // again.
    let began = now();
    while !vllm.loaded_adapters().await?.contains("a4") {
        ensure!(began.elapsed() < Duration::from_secs(20), "the adapter is not loaded again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    sidecar.wait_for_state("a4", AdapterState::Verified).await.map(drop)
}

async fn check_server_restart(sidecar: &RealSidecar, vllm: &mut VllmServer) -> Result<()> {
    let before = sidecar.status().await?.server;
    vllm.kill();
    let killed = now();
    while sidecar.is_ready().await {
        ensure!(killed.elapsed() < Duration::from_secs(1), "ready for more than a second after the kill");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let noticed = killed.elapsed();
    vllm.start()?;
    vllm.wait_ready().await?;
    let healthy = now();
    sidecar.wait_for_state("a4", AdapterState::Verified).await?;
    sidecar.wait_until_ready().await?;
    let back = healthy.elapsed();
    print_line(&format!(
        "a killed vLLM is noticed after {noticed:.0?}, and has its adapter back {back:.0?} after it is healthy"
    ));
    let after = sidecar.status().await?.server;
    ensure!(before != after && after.is_some(), "the same server: {before:?} {after:?}");
    ensure!(vllm.loaded_adapters().await?.contains("a4"), "verified, but not in /v1/models");
    Ok(())
}
