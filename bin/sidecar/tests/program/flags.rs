//! Tests of the command line, its errors, and its compatibility with lora-syncer.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use std::net::TcpListener;

#[test]
fn help_has_lora_syncer_flags_and_defaults_and_examples() {
    let (code, help) = SidecarCommand::new().args(["--help"]).run();
    assert_eq!(code, Some(0));
    for (flag, default) in [
        ("--health-check-timeout", "300"),
        ("--health-check-interval", "2"),
        ("--reconcile-trigger", "5"),
        ("--config <FILE>", "/config/configmap.yaml"),
        ("--config-validation", "true"),
        ("--metrics-port", "8080"),
    ] {
        let (_, rest) = help.split_once(flag).unwrap_or_else(|| panic!("{flag} is not in\n{help}"));
        let after = rest.split("\n      --").next().unwrap();
        assert!(after.contains(&format!("[default: {default}]")), "{flag}: {after}");
    }
    assert!(help.contains("DYNAMIC_LORA_ROLLOUT_CONFIG") && help.contains("Examples:"), "{help}");
}

#[test]
fn invalid_value_is_reported_with_its_flag_and_a_fix() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let empty = empty.path().to_str().unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy_port = busy.local_addr().unwrap().port().to_string();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["--load-timeout", "soon"], 2, &["--load-timeout", "5m"]),
        (&["--reconcile-trigger", "0"], 2, &["--reconcile-trigger", "zero"]),
        (&["--max-parallel", "0"], 2, &["--max-parallel", "like 4"]),
        (&["--configmap", "adapters"], 2, &["--configmap", "like default/vllm-adapters"]),
        (&["--configmap", "default/a/b"], 2, &["--configmap", "like default/vllm-adapters"]),
        (&["--address", "pod"], 2, &["--address", "127.0.0.1"]),
        (&["--metrics-port", "80800"], 2, &["--metrics-port"]),
        (&["--probe", "perhaps"], 2, &["--probe", "true, false"]),
        (&["--metric-port", "1"], 2, &["--metrics-port"]),
        (&["--vllm-host", "http://vllm"], 2, &["--vllm-host", "like localhost"]),
        (&["--config-validation", "false"], 2, &["--config-validation", "leave the flag out"]),
        (&["--api-key-file", "/nonexistent/key"], 2, &["--api-key-file: /nonexistent/key", "no such file"]),
        (&["--api-key-file", empty], 2, &["--api-key-file", "is empty"]),
        (&["--vllm-ca-file", "/nonexistent/ca"], 2, &["--vllm-ca-file: /nonexistent/ca", "no such file"]),
        (&["--vllm-ca-file", empty], 2, &["--vllm-ca-file", "contains no certificate"]),
        (&["--vllm-server-name", "vllm"], 2, &["--vllm-server-name", "give --vllm-tls too"]),
        (&["--vllm-tls", "--vllm-server-name", "10.0.0.7"], 2, &["--vllm-server-name", "like vllm.models.svc"]),
        (&["--allow-source", "adapters"], 2, &["--allow-source", "like my-org/"]),
        (&["--allow-source", "/adapters/../etc"], 2, &["--allow-source", "`..`"]),
        (&["--stop-timeout", "0"], 2, &["--stop-timeout", "zero"]),
        (&["--vllm-host", "a/b", "--api-key-file", empty], 2, &["--vllm-host", "--api-key-file"]),
        (&["--address", "127.0.0.1", "--metrics-port", &busy_port], 1, &["--metrics-port", "another port"]),
        (&["--metrics-port", "0", "--address", "127.0.0.1", "--state-dir", "/proc/x"], 1, &["--state-dir", "emptyDir"]),
    ];
    for (args, expected, texts) in cases {
        let (code, output) = SidecarCommand::new().args(args.iter().copied()).run();
        assert_eq!(code, Some(*expected), "{args:?}: {output}");
        for text in *texts {
            assert!(output.contains(text), "{args:?}: {text} is not in: {output}");
        }
    }
}

#[test]
fn configmap_flag_without_a_cluster_reports_the_kubeconfig() {
    let common = ["--configmap", "default/a", "--metrics-port", "0", "--address", "127.0.0.1"];
    let (code, output) = SidecarCommand::new().args(common).env("KUBECONFIG", "/nonexistent/kubeconfig").run();
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("--configmap") && output.contains("/nonexistent/kubeconfig"), "{output}");
}

#[test]
fn lora_syncer_deployment_works_unchanged() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    // As in the README of lora-syncer: keys that are ignored now, entries with a base model, ids in both lists.
    let file = format!(
        "vLLMLoRAConfig:\n  name: sql-loras-llama\n  host: 127.0.0.1\n  port: {}\n  defaultBaseModel: base\n  \
         ensureExist:\n    models:\n    - base-model: base\n      id: tweet-summary-1\n      source: /adapters/one\n    \
         - id: both\n      source: /adapters/both\n  ensureNotExist:\n    models:\n    - base-model: base\n      id: \
         tweet-summary-0\n      source: /adapters/zero\n    - id: both\n      source: /adapters/both\n",
        vllm.port()
    );
    mount.update(&file, None);
    let lora_syncer_args = ["--health-check-timeout=300", "--health-check-interval", "2", "--reconcile-trigger", "5"];
    let mut sidecar = SidecarCommand::new()
        .args(lora_syncer_args)
        .args(["--config-validation"])
        .env("DYNAMIC_LORA_ROLLOUT_CONFIG", mount.file())
        .start();
    sidecar.wait_for_state("tweet-summary-1", AdapterState::Verified);
    sidecar.wait_until_ready();
    assert_eq!(vllm.adapters(), ["tweet-summary-1"]);
    let (_, metrics) = sidecar.get("/metrics");
    for line in [
        "lora_syncer_adapter_status{adapter_name=\"tweet-summary-1\"} 1",
        "lora_syncer_adapter_status{adapter_name=\"tweet-summary-0\"} 0",
    ] {
        assert!(metrics.lines().any(|existing| existing == line), "{line} is not in\n{metrics}");
    }
    assert!(sidecar.has_logged("both"), "an id in both lists must be logged");
}

#[test]
fn system_without_ca_certificates_needs_a_ca_file() {
    let start = SidecarCommand::new().env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
    let (code, output) = start.args(["--vllm-tls", "--metrics-port", "0", "--address", "127.0.0.1"]).run();
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("--vllm-tls") && output.contains("give --vllm-ca-file"), "{output}");
}

#[test]
fn ignored_interval_is_logged() {
    let mut mount = ConfigMapMount::new();
    mount.update(&adapters_file(1, &[], &[]), None);
    let mut sidecar =
        SidecarCommand::new().path("--config", &mount.file()).args(["--health-check-interval", "30"]).start();
    sidecar.wait_for("the note", |sidecar| sidecar.has_logged("--health-check-interval has no effect").then_some(()));
    let quiet = SidecarProgram::start_with_mount(&mount);
    assert!(!quiet.has_logged("has no effect"));
}

#[test]
fn refused_source_is_not_loaded_and_status_names_allowed_ones() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    let text = adapters_file(vllm.port(), &["v1", "v2"], &[]);
    mount.update(&text.replace("/adapters/v2", "/adapters/../tmp/v2"), None);
    let start = || SidecarCommand::new().path("--config", &mount.file());
    for mut sidecar in [
        start().args(["--allow-source", "org/", "--allow-source", "/adapters"]).start(),
        start().env("ROLLORA_ALLOW_SOURCE", "org/,/adapters").start(),
    ] {
        sidecar.wait_for_state("v1", AdapterState::Verified);
        sidecar.wait_for_state("v2", AdapterState::SourceRefused);
        sidecar.wait_until_ready();
        let status = sidecar.status();
        let error = status.adapters.iter().find(|adapter| adapter.id.as_str() == "v2").unwrap().last_error.as_ref();
        let error = error.unwrap();
        assert_eq!(error.reason, "SourceNotAllowed");
        assert!(error.message.contains("org/, /adapters only"), "{}", error.message);
    }
    assert!(vllm.requests().iter().all(|request| !request.contains("v2")), "{:?}", vllm.requests());
}
