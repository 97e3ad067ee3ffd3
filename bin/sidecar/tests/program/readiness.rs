//! `/readyz` and `/livez`.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, ProgramTestbed, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use std::time::{Duration, Instant};

#[test]
fn a_vllm_that_is_not_there_yet_is_waited_for() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    vllm.kill();
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar =
        SidecarCommand::new().path("--config", &mount.file()).args(["--health-check-timeout", "100ms"]).start();
    sidecar.wait_for("the reason", |sidecar| sidecar.readiness().1.starts_with("Unreachable").then_some(()));
    sidecar.wait_for("the complaint", |sidecar| sidecar.has_logged("vLLM has been away for 100ms").then_some(()));
    assert_eq!(sidecar.get("/livez").0, 200, "waiting is no fault");
    vllm.restart();
    sidecar.wait_until_ready();
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
}

#[test]
fn readiness_is_off_from_the_moment_vllm_goes_away_until_it_has_back_what_it_had() {
    let mut bed = ProgramTestbed::with_verified(&["v1", "v2"]);
    for _ in 0..3 {
        bed.vllm.kill();
        let ended = Instant::now();
        bed.sidecar.wait_for("not ready", |sidecar| (!sidecar.readiness().0).then_some(()));
        let noticed = ended.elapsed();
        assert!(noticed < Duration::from_secs(1), "noticed after {noticed:?}");
        bed.vllm.restart();
        bed.sidecar.wait_until_ready();
        assert_eq!(bed.vllm.adapters(), ["v1", "v2"], "ready means that it is back");
        assert_eq!(bed.sidecar.adapter_state("v2"), Some(AdapterState::Verified));
    }
}

#[test]
fn a_vllm_that_takes_connections_and_says_nothing_is_not_ready() {
    let mut bed = ProgramTestbed::with_verified(&["v1"]);
    bed.vllm.configure(|knobs| knobs.frozen = true);
    let words = bed.sidecar.wait_for("not ready", |sidecar| {
        let (ready, words) = sidecar.readiness();
        (!ready).then_some(words)
    });
    assert!(words.starts_with("NoAnswer: vLLM has not answered for"), "{words}");
    let asked = Instant::now();
    assert!(!bed.sidecar.readiness().0);
    assert!(asked.elapsed() < Duration::from_secs(1), "a kubelet waits for a second");
    assert_eq!(bed.sidecar.get("/livez").0, 200);
    bed.vllm.configure(|knobs| knobs.frozen = false);
    bed.sidecar.wait_until_ready();
    assert_eq!(bed.vllm.count_requests("load v1 /adapters/v1"), 1, "it was the same server all the time");
}

#[test]
fn a_new_adapter_takes_no_readiness_back_and_a_bad_one_does_not_hold_it() {
    let mut bed = ProgramTestbed::with_verified(&["v1"]);
    bed.vllm.configure(|knobs| {
        knobs.load_time = Duration::from_millis(300);
        knobs.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
    });
    bed.update_file(&["v1", "v2", "bad"], &[], None);
    bed.sidecar.wait_for("v2 is verified", |sidecar| {
        assert!(sidecar.readiness().0);
        (sidecar.adapter_state("v2") == Some(AdapterState::Verified)).then_some(())
    });
    bed.sidecar.wait_for_state("bad", AdapterState::Failed);
    let (_, metrics) = bed.sidecar.get("/metrics");
    assert!(metrics.contains("call=\"load\",outcome=\"AdapterNotFound\""), "{metrics}");
    // Beside another process of the server, the bad one is waited for no longer than its first failure.
    bed.vllm.kill();
    bed.vllm.restart();
    bed.sidecar.wait_for("not ready", |sidecar| (!sidecar.status().readiness.ready).then_some(()));
    bed.sidecar.wait_until_ready();
}

#[test]
fn a_sidecar_that_starts_again_beside_its_server_is_ready_without_asking_for_anything_again() {
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
    let asked = vllm.requests();
    let mut sidecar = start();
    sidecar.wait_until_ready();
    assert_eq!(["v1", "v2"].map(|name| sidecar.adapter_state(name)), [Some(AdapterState::Verified); 2]);
    assert_eq!(vllm.requests(), asked, "nothing was loaded or proven again");
    assert!(sidecar.terminate().0.success());
    // What cannot be read is done without.
    std::fs::write(folder.path().join("sidecar.json"), "{").unwrap();
    let mut sidecar = start();
    sidecar.wait_until_ready();
    assert!(sidecar.has_logged("what was kept cannot be read"));
}

#[test]
fn what_a_server_died_of_is_known_also_after_a_restart_of_the_sidecar() {
    let knobs = FakeVllmConfig { crashing: std::iter::once("bad".to_owned()).collect(), ..FakeVllmConfig::default() };
    let (vllm, mut mount) = (FakeVllm::start(knobs), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["bad"], &[]), None);
    let folder = tempfile::tempdir().unwrap();
    let start = || SidecarCommand::new().path("--config", &mount.file()).path("--state-dir", folder.path()).start();
    let mut sidecar = start();
    sidecar.wait_for("the first death", |_| (!vllm.is_running()).then_some(()));
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
fn one_that_is_asked_before_it_knows_anything_is_not_ready() {
    let mut mount = ConfigMapMount::new();
    mount.update(&adapters_file(1, &[], &[]), None);
    let sidecar = SidecarProgram::start_with_mount(&mount);
    let (ready, words) = sidecar.readiness();
    assert!(!ready, "{words}");
}
