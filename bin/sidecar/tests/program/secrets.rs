//! Tests that no secret appears in the trace log, in HTTP answers, or in errors of the command line.

use crate::{
    api_server::{FakeApiServer, TOKEN},
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;

const API_KEY: &str = "key-of-vllm-93ac";
const NEXT_API_KEY: &str = "next-key-of-vllm-77b0";
const HUB_TOKEN: &str = "hf_token_of_the_hub_4f2e";
const SECRETS: [&str; 4] = [API_KEY, NEXT_API_KEY, HUB_TOKEN, TOKEN];

/// Returns the answers of all HTTP endpoints.
fn served_text(sidecar: &SidecarProgram) -> String {
    ["/status", "/metrics", "/readyz", "/livez", "/nowhere"].map(|path| sidecar.get(path).1).concat()
}

fn assert_no_secret(text: &str) {
    for secret in SECRETS {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "this line contains a secret: {line:?}");
    }
}

#[test]
fn no_log_or_answer_contains_a_secret() {
    let vllm = FakeVllm::start(FakeVllmConfig { api_key: Some(API_KEY.to_owned()), ..FakeVllmConfig::default() });
    let api = FakeApiServer::start();
    let file = adapters_file(vllm.port(), &["v1", "bad"], &[]);
    api.apply("adapters", &[("configmap.yaml", file.as_str())]);
    vllm.configure(|config| {
        config.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
    });
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, format!("{API_KEY}\n")).unwrap();
    let mut sidecar = SidecarCommand::new()
        .env("RUST_LOG", "trace")
        .env("KUBECONFIG", api.kubeconfig())
        .env("HF_TOKEN", HUB_TOKEN)
        .args(["--configmap", "default/adapters"])
        .path("--state-dir", folder.path())
        .path("--api-key-file", &key)
        .start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_for_state("bad", AdapterState::Failed);
    assert_no_secret(&served_text(&sidecar));
    // A wrong key, then a vLLM that goes down and comes back with another key.
    std::fs::write(&key, NEXT_API_KEY).unwrap();
    sidecar
        .wait_for("the refusal", |sidecar| sidecar.status().problem.filter(|problem| problem.reason == "Unauthorized"));
    assert_no_secret(&served_text(&sidecar));
    vllm.kill();
    sidecar.wait_for("the outage", |sidecar| sidecar.status().server.is_none().then_some(()));
    assert_no_secret(&served_text(&sidecar));
    vllm.configure(|config| config.api_key = Some(NEXT_API_KEY.to_owned()));
    vllm.restart();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    // A key with invalid characters must not appear either.
    std::fs::write(&key, format!("{API_KEY}\n{NEXT_API_KEY}")).unwrap();
    sidecar.wait_for("the warning", |sidecar| sidecar.has_logged("cannot be sent").then_some(()));
    assert_no_secret(&served_text(&sidecar));
    let (_, _, log) = sidecar.terminate();
    assert!(log.iter().any(|line| line.contains("TRACE")), "the log level is not trace");
    assert_no_secret(&log.join("\n"));
    let state = std::fs::read_to_string(folder.path().join("sidecar.json")).unwrap();
    assert_no_secret(&state);
}

#[test]
fn command_line_error_contains_no_secret() {
    let mut mount = ConfigMapMount::new();
    mount.update(&adapters_file(1, &[], &[]), None);
    let start =
        SidecarCommand::new().path("--config", &mount.file()).env("VLLM_API_KEY", format!("{API_KEY}\n{API_KEY}"));
    let (code, output) = start.env("HF_TOKEN", HUB_TOKEN).args(["--metrics-port", "0"]).run();
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("VLLM_API_KEY holds characters that cannot be sent"), "{output}");
    assert_no_secret(&output);
    let (_, help) =
        SidecarCommand::new().env("VLLM_API_KEY", API_KEY).env("HF_TOKEN", HUB_TOKEN).args(["--help"]).run();
    assert_no_secret(&help);
}
