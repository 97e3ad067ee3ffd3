//! Tests that `/status`, `/readyz`, `/metrics` and the log report the class of each error, with recorded messages of
//! vLLM where it has one.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::ReportedError;
use serde_json::Value;

/// The HTTP status and the message of a recorded answer.
fn recorded_answer(label: &str) -> (u16, String) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testbed/testdata/vllm/transcript.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.into_iter().find(|line| line["label"] == label).unwrap_or_else(|| panic!("no {label}"));
    let answer: Value = serde_json::from_str(line["response"].as_str().unwrap()).unwrap();
    let text = answer["error"]["message"].as_str().unwrap().to_owned();
    (line["status"].as_u64().unwrap().try_into().unwrap(), text)
}

/// Lets a server with `config` load `bad`, and returns the failure once `/status`, `/metrics` and the log report it.
fn load_failure(config: FakeVllmConfig, args: &[&str]) -> (SidecarProgram, ReportedError) {
    let (vllm, mut mount) = (FakeVllm::start(config), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["bad"], &[]), None);
    let start = SidecarCommand::new().path("--config", &mount.file()).args(args.iter().copied());
    let mut sidecar = start.start();
    let problem = sidecar.wait_for("a failure", |sidecar| {
        let adapter = sidecar.status().adapters.into_iter().next()?;
        (adapter.attempts > 0).then_some(adapter.last_error).flatten()
    });
    let counter = format!("rollora_sidecar_calls_total{{call=\"load\",outcome=\"{}\"}}", problem.reason);
    let metrics = sidecar.get("/metrics").1;
    assert!(metrics.contains(&counter), "{counter} is not in\n{metrics}");
    assert!(metrics.contains("rollora_sidecar_adapter_attempts{adapter_name=\"bad\"}"), "{metrics}");
    sidecar.wait_for("the log", |sidecar| {
        let line =
            sidecar.log().into_iter().find(|line| line.contains(&problem.message) && line.contains("adapter=bad"))?;
        let complete = ["source=\"/adapters/bad\"", "attempts=", "next_try="].iter().all(|field| line.contains(field));
        assert!(complete, "{line}");
        Some(())
    });
    (sidecar, *problem)
}

fn failing_with(label: &str) -> FakeVllmConfig {
    FakeVllmConfig {
        failing: std::iter::once(("bad".to_owned(), recorded_answer(label))).collect(),
        ..FakeVllmConfig::default()
    }
}

#[test]
fn failed_load_is_reported_with_its_error_class() {
    let off = FakeVllmConfig { runtime_updating_off: true, ..FakeVllmConfig::default() };
    let broken = FakeVllmConfig {
        failing: std::iter::once(("bad".to_owned(), (500, "Internal Server Error".to_owned()))).collect(),
        ..FakeVllmConfig::default()
    };
    let hanging = FakeVllmConfig { hanging: std::iter::once("bad".to_owned()).collect(), ..FakeVllmConfig::default() };
    for (config, args, reason, text) in [
        (off, &[][..], "RuntimeUpdatingOff", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        (failing_with("bad abs path"), &[], "AdapterNotFound", "check that this folder exists where vLLM runs"),
        (failing_with("rank 32 > max-lora-rank 16"), &[], "RankTooHigh", "rank 32 and vLLM takes at most 16"),
        (failing_with("broken folder: junk"), &[], "BadAdapter", "fix its files and give them a new id"),
        (failing_with("broken folder: badcfg"), &[], "BadAdapter", "fix its files and give them a new id"),
        (failing_with("broken folder: trunc"), &[], "BadAdapter", "fix its files and give them a new id"),
        (failing_with("name equals base model"), &[], "NameConflict", "give the adapter another id"),
        (failing_with("server without --enable-lora: load"), &[], "LoraOff", "--enable-lora"),
        (broken, &[], "ServerError", "check vLLM's log"),
        (hanging, &["--load-timeout", "300ms"], "Timeout", "it may still do so"),
    ] {
        let (_sidecar, problem) = load_failure(config, args);
        assert_eq!(problem.reason, reason, "{}", problem.message);
        assert!(problem.message.contains(text), "{reason}: {}", problem.message);
    }
}

#[test]
fn unavailable_server_is_reported_with_its_error_class() {
    let refusing = FakeVllm::start(FakeVllmConfig { api_key: Some("key".to_owned()), ..FakeVllmConfig::default() });
    let gone = FakeVllm::start(FakeVllmConfig::default());
    gone.kill();
    for (port, reason, text) in [
        (refusing.port(), "Unauthorized", "configure the key that it was started with"),
        (gone.port(), "Unreachable", "check that it runs and listens at this address"),
    ] {
        let mut mount = ConfigMapMount::new();
        mount.update(&adapters_file(port, &["v1"], &[]), None);
        let mut sidecar = SidecarProgram::start_with_mount(&mount);
        let problem =
            sidecar.wait_for(reason, |sidecar| sidecar.status().problem.filter(|problem| problem.reason == reason));
        assert!(problem.message.contains(text), "{}", problem.message);
        let (ready, message) = sidecar.readiness();
        assert!(!ready && message.starts_with(reason) && message.contains(text), "{message}");
        let metrics = sidecar.get("/metrics").1;
        assert!(metrics.contains("rollora_sidecar_vllm_up 0"), "{metrics}");
        sidecar.wait_for("the log", |sidecar| sidecar.has_logged(text).then_some(()));
    }
}
