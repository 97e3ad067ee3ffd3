//! No secret is told: not in the most talkative log, not by what is served, not by the command line.

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

/// Everything that a sidecar serves.
fn served_text(sidecar: &SidecarProgram) -> String {
    ["/status", "/metrics", "/readyz", "/livez", "/nowhere"].map(|path| sidecar.get(path).1).concat()
}

fn assert_no_secret(text: &str) {
    for secret in SECRETS {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "a secret is told: {line:?}");
    }
}

#[test]
fn nothing_that_is_logged_or_served_holds_a_secret() {
    let vllm = FakeVllm::start(FakeVllmConfig { api_key: Some(API_KEY.to_owned()), ..FakeVllmConfig::default() });
    let api = FakeApiServer::start();
    let file = adapters_file(vllm.port(), &["v1", "bad"], &[]);
    api.apply("adapters", &[("configmap.yaml", file.as_str())]);
    vllm.configure(|knobs| {
        knobs.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
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
    // A key that is wrong, a vLLM that goes away, and one that comes back with another key.
    std::fs::write(&key, NEXT_API_KEY).unwrap();
    sidecar.wait_for("the refusal", |sidecar| sidecar.status().problem.filter(|said| said.reason == "Unauthorized"));
    assert_no_secret(&served_text(&sidecar));
    vllm.kill();
    sidecar.wait_for("away", |sidecar| sidecar.status().server.is_none().then_some(()));
    assert_no_secret(&served_text(&sidecar));
    vllm.configure(|knobs| knobs.api_key = Some(NEXT_API_KEY.to_owned()));
    vllm.restart();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    // A key that cannot be sent is not shown either.
    std::fs::write(&key, format!("{API_KEY}\n{NEXT_API_KEY}")).unwrap();
    sidecar.wait_for("it is said", |sidecar| sidecar.has_logged("cannot be sent").then_some(()));
    assert_no_secret(&served_text(&sidecar));
    let (_, _, log) = sidecar.terminate();
    assert!(log.iter().any(|line| line.contains("TRACE")), "the log is the most talkative one");
    assert_no_secret(&log.join("\n"));
    let kept = std::fs::read_to_string(folder.path().join("sidecar.json")).unwrap();
    assert_no_secret(&kept);
}

#[test]
fn a_command_line_that_is_refused_shows_no_key() {
    let mut mount = ConfigMapMount::new();
    mount.update(&adapters_file(1, &[], &[]), None);
    let start =
        SidecarCommand::new().path("--config", &mount.file()).env("VLLM_API_KEY", format!("{API_KEY}\n{API_KEY}"));
    let (code, said) = start.env("HF_TOKEN", HUB_TOKEN).args(["--metrics-port", "0"]).run();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("VLLM_API_KEY holds characters that cannot be sent"), "{said}");
    assert_no_secret(&said);
    let (_, help) =
        SidecarCommand::new().env("VLLM_API_KEY", API_KEY).env("HF_TOKEN", HUB_TOKEN).args(["--help"]).run();
    assert_no_secret(&help);
}
