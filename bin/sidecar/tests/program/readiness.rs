//! Tests of `/readyz` and `/livez` over restarts of vLLM and of the sidecar.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, ProgramTestbed, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use std::time::{Duration, Instant};

#[test]
fn sidecar_waits_for_a_vllm_that_is_down() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    vllm.kill();
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar =
        SidecarCommand::new().path("--config", &mount.file()).args(["--health-check-timeout", "100ms"]).start();
    sidecar.wait_for("the reason", |sidecar| sidecar.readiness().1.starts_with("Unreachable").then_some(()));
    sidecar.wait_for("the outage log", |sidecar| sidecar.has_logged("vLLM has been down for 100ms").then_some(()));
    assert_eq!(sidecar.get("/livez").0, 200, "waiting for vLLM must not fail /livez");
    vllm.restart();
    sidecar.wait_until_ready();
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
}

#[test]
fn vllm_restart_makes_unready_until_its_adapters_are_back() {
    let mut testbed = ProgramTestbed::with_verified(&["v1", "v2"]);
    for _ in 0..3 {
        testbed.vllm.kill();
        let killed_at = Instant::now();
        testbed.sidecar.wait_for("not ready", |sidecar| (!sidecar.readiness().0).then_some(()));
        let reaction = killed_at.elapsed();
        assert!(reaction < Duration::from_secs(1), "unready after {reaction:?}");
        testbed.vllm.restart();
        testbed.sidecar.wait_until_ready();
        assert_eq!(testbed.vllm.adapters(), ["v1", "v2"], "ready before the adapters were back");
        assert_eq!(testbed.sidecar.adapter_state("v2"), Some(AdapterState::Verified));
    }
}

#[test]
fn vllm_that_accepts_but_does_not_answer_is_unready() {
    let mut testbed = ProgramTestbed::with_verified(&["v1"]);
    testbed.vllm.configure(|config| config.frozen = true);
    let message = testbed.sidecar.wait_for("not ready", |sidecar| {
        let (ready, message) = sidecar.readiness();
        (!ready).then_some(message)
    });
    assert!(message.starts_with("NoAnswer: vLLM has not answered for"), "{message}");
    let requested_at = Instant::now();
    assert!(!testbed.sidecar.readiness().0);
    assert!(requested_at.elapsed() < Duration::from_secs(1), "a kubelet probe times out after one second");
    assert_eq!(testbed.sidecar.get("/livez").0, 200);
    testbed.vllm.configure(|config| config.frozen = false);
    testbed.sidecar.wait_until_ready();
    assert_eq!(testbed.vllm.count_requests("load v1 /adapters/v1"), 1, "it was the same server process all the time");
}

#[test]
fn new_adapter_keeps_readiness_and_a_bad_one_does_not_block_it() {
    let mut testbed = ProgramTestbed::with_verified(&["v1"]);
    testbed.vllm.configure(|config| {
        config.load_time = Duration::from_millis(300);
        config.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
    });
    testbed.update_file(&["v1", "v2", "bad"], &[], None);
    testbed.sidecar.wait_for("v2 is verified", |sidecar| {
        assert!(sidecar.readiness().0);
        (sidecar.adapter_state("v2") == Some(AdapterState::Verified)).then_some(())
    });
    testbed.sidecar.wait_for_state("bad", AdapterState::Failed);
    let (_, metrics) = testbed.sidecar.get("/metrics");
    assert!(metrics.contains("call=\"load\",outcome=\"AdapterNotFound\""), "{metrics}");
    // After a restart of vLLM, readiness waits for the bad adapter only until its first failure.
    testbed.vllm.kill();
    testbed.vllm.restart();
    testbed.sidecar.wait_for("not ready", |sidecar| (!sidecar.status().readiness.ready).then_some(()));
    testbed.sidecar.wait_until_ready();
}

#[test]
fn restarted_sidecar_is_ready_without_new_calls() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1", "v2"], &[]), None);
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let start = SidecarCommand::new().path("--config", &mount.file()).path("--state-dir", folder.path());
        start.args(["--pod-name", "pod-1"]).start()
    };
    let mut sidecar = start();
    sidecar.wait_until_ready();
    sidecar.wait_for_state("v2", AdapterState::Verified);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert!(sidecar.terminate().0.success());
    let requests = vllm.requests();
    let mut sidecar = start();
    sidecar.wait_until_ready();
    assert_eq!(["v1", "v2"].map(|name| sidecar.adapter_state(name)), [Some(AdapterState::Verified); 2]);
    assert_eq!(vllm.requests(), requests, "no adapter may be loaded or probed again");
    assert!(sidecar.terminate().0.success());
    // An invalid state file is ignored.
    std::fs::write(folder.path().join("sidecar.json"), "{").unwrap();
    let mut sidecar = start();
    sidecar.wait_until_ready();
    assert!(sidecar.has_logged("the state file cannot be parsed"));
}

#[test]
fn cause_of_a_crash_survives_a_sidecar_restart() {
    let config = FakeVllmConfig { crashing: std::iter::once("bad".to_owned()).collect(), ..FakeVllmConfig::default() };
    let (vllm, mut mount) = (FakeVllm::start(config), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["bad"], &[]), None);
    let folder = tempfile::tempdir().unwrap();
    let start = || SidecarCommand::new().path("--config", &mount.file()).path("--state-dir", folder.path()).start();
    let mut sidecar = start();
    sidecar.wait_for("the first crash", |_| (!vllm.is_running()).then_some(()));
    sidecar.wait_for_state("bad", AdapterState::ServerDied);
    vllm.restart();
    sidecar.wait_until_ready();
    assert!(sidecar.terminate().0.success());
    let mut sidecar = start();
    sidecar.wait_until_ready();
    let adapter = sidecar.status().adapters.remove(0);
    assert_eq!(adapter.state, AdapterState::ServerDied);
    assert!(adapter.last_error.unwrap().message.contains("vLLM ended while it loaded or first used adapter `bad`"));
    assert_eq!(vllm.count_requests("use bad"), 1);
}

#[test]
fn sidecar_is_unready_before_its_first_poll() {
    let mut mount = ConfigMapMount::new();
    mount.update(&adapters_file(1, &[], &[]), None);
    let sidecar = SidecarProgram::start_with_mount(&mount);
    let (ready, message) = sidecar.readiness();
    assert!(!ready, "{message}");
}
