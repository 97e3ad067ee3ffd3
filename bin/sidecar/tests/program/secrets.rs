//! No secret is told: not in the most talkative log, not by what is served, not by the command line.

use crate::{
    api::{Api, TOKEN},
    bed::{Mount, Program, Start, adapters},
    fake::{Fake, Knobs},
};
use rollora_api::sidecar_status::AdapterState;

const KEY: &str = "key-of-vllm-93ac";
const NEXT_KEY: &str = "next-key-of-vllm-77b0";
const HUB: &str = "hf_token_of_the_hub_4f2e";
const SECRETS: [&str; 4] = [KEY, NEXT_KEY, HUB, TOKEN];

/// Everything that a sidecar serves.
fn served(sidecar: &Program) -> String {
    ["/status", "/metrics", "/readyz", "/livez", "/nowhere"].map(|path| sidecar.get(path).1).concat()
}

fn holds_no_secret(text: &str) {
    for secret in SECRETS {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "a secret is told: {line:?}");
    }
}

#[test]
fn nothing_that_is_logged_or_served_holds_a_secret() {
    let vllm = Fake::start(Knobs { api_key: Some(KEY.to_owned()), ..Knobs::default() });
    let api = Api::start();
    let file = adapters(vllm.port(), &["v1", "bad"], &[]);
    api.apply("adapters", &[("configmap.yaml", file.as_str())]);
    vllm.set(|knobs| {
        knobs.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
    });
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    let mut sidecar = Start::new()
        .env("RUST_LOG", "trace")
        .env("KUBECONFIG", api.kubeconfig())
        .env("HF_TOKEN", HUB)
        .args(["--configmap", "default/adapters"])
        .path("--state-dir", folder.path())
        .path("--api-key-file", &key)
        .start();
    sidecar.until_state("v1", AdapterState::Verified);
    sidecar.until_state("bad", AdapterState::Failed);
    holds_no_secret(&served(&sidecar));
    // A key that is wrong, a vLLM that goes away, and one that comes back with another key.
    std::fs::write(&key, NEXT_KEY).unwrap();
    sidecar.until("the refusal", |sidecar| sidecar.status().problem.filter(|said| said.reason == "Unauthorized"));
    holds_no_secret(&served(&sidecar));
    vllm.end();
    sidecar.until("away", |sidecar| sidecar.status().server.is_none().then_some(()));
    holds_no_secret(&served(&sidecar));
    vllm.set(|knobs| knobs.api_key = Some(NEXT_KEY.to_owned()));
    vllm.begin();
    sidecar.until_state("v1", AdapterState::Verified);
    // A key that cannot be sent is not shown either.
    std::fs::write(&key, format!("{KEY}\n{NEXT_KEY}")).unwrap();
    sidecar.until("it is said", |sidecar| sidecar.said("cannot be sent").then_some(()));
    holds_no_secret(&served(&sidecar));
    let (_, _, log) = sidecar.terminate();
    assert!(log.iter().any(|line| line.contains("TRACE")), "the log is the most talkative one");
    holds_no_secret(&log.join("\n"));
    let kept = std::fs::read_to_string(folder.path().join("sidecar.json")).unwrap();
    holds_no_secret(&kept);
}

#[test]
fn a_command_line_that_is_refused_shows_no_key() {
    let mut mount = Mount::new();
    mount.swap(&adapters(1, &[], &[]), None);
    let start = Start::new().path("--config", &mount.file()).env("VLLM_API_KEY", format!("{KEY}\n{KEY}"));
    let (code, said) = start.env("HF_TOKEN", HUB).args(["--metrics-port", "0"]).run();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("VLLM_API_KEY holds characters that cannot be sent"), "{said}");
    holds_no_secret(&said);
    let (_, help) = Start::new().env("VLLM_API_KEY", KEY).env("HF_TOKEN", HUB).args(["--help"]).run();
    holds_no_secret(&help);
}
