//! Tests of what readiness waits for after a start, and what not.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, ProgramTestbed, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

const NOT_FOUND: &str = "Loading lora bad failed: No adapter found for /x";

fn fail_loads(vllm: &FakeVllm, name: &str) {
    vllm.configure(|config| drop(config.failing.insert(name.to_owned(), (404, NOT_FOUND.to_owned()))));
}

fn readiness_reason(sidecar: &SidecarProgram) -> String {
    let (ready, message) = sidecar.readiness();
    let reason = message.split(':').next().unwrap_or_default();
    if ready { "Ready".to_owned() } else { reason.to_owned() }
}

#[test]
fn hanging_load_delays_readiness_until_the_settle_timeout() {
    let config = FakeVllmConfig { hanging: ["slow".to_owned()].into(), ..FakeVllmConfig::default() };
    let (vllm, mut mount) = (FakeVllm::start(config), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["slow", "v1"], &[]), None);
    let started = Instant::now();
    let mut sidecar =
        SidecarCommand::new().path("--config", &mount.file()).args(["--settle-timeout", "1500ms"]).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert_eq!(readiness_reason(&sidecar), "Settling", "v1 must be verified while the other load hangs");
    sidecar.wait_until_ready();
    assert!(started.elapsed() >= Duration::from_millis(1500), "ready after {:?}", started.elapsed());
    assert_eq!(sidecar.adapter_state("slow"), Some(AdapterState::Loading));
    // From now on neither this load nor another one makes it unready.
    vllm.configure(|config| {
        config.hanging.insert("slow2".to_owned());
    });
    mount.update(&adapters_file(vllm.port(), &["slow", "v1", "slow2"], &[]), None);
    sidecar.wait_for_state("slow2", AdapterState::Loading);
    assert_eq!(readiness_reason(&sidecar), "Ready");
}

/// Asserts that readiness waits for `needed` beyond the settle timeout, with this file and these directives.
fn assert_unready_until_verified(user: impl Fn(u16) -> String, operator: Option<&str>) {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    fail_loads(&vllm, "needed");
    mount.update(&user(vllm.port()), operator);
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).args(["--settle-timeout", "300ms"]).start();
    sidecar.wait_for_state("needed", AdapterState::Failed);
    let until = Instant::now() + Duration::from_millis(800);
    while Instant::now() < until {
        let message = sidecar.readiness().1;
        assert!(message.starts_with("AdaptersNotVerified") && message.contains("needed"), "{message}");
        thread::sleep(Duration::from_millis(50));
    }
    vllm.configure(|config| config.failing.clear());
    sidecar.wait_until_ready();
    assert_eq!(sidecar.adapter_state("needed"), Some(AdapterState::Verified));
}

#[test]
fn required_adapter_blocks_readiness_until_verified() {
    let user = |port| {
        adapters_file(port, &["needed"], &[]).replace("/adapters/needed", "/adapters/needed\n      required: true")
    };
    assert_unready_until_verified(user, None);
}

#[test]
fn serving_adapter_blocks_readiness_until_verified() {
    assert_unready_until_verified(|port| adapters_file(port, &["needed"], &[]), Some("serving: [needed]\n"));
}

#[test]
fn failed_adapter_does_not_block_readiness() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    fail_loads(&vllm, "bad");
    mount.update(&adapters_file(vllm.port(), &["bad", "v1"], &[]), None);
    let started = Instant::now();
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    sidecar.wait_until_ready();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "ready only after {:?}, although no adapter had to settle",
        started.elapsed()
    );
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
    assert_eq!(sidecar.adapter_state("bad"), Some(AdapterState::Failed));
}

fn start_with_state_dir(mount: &ConfigMapMount, folder: &Path) -> SidecarProgram {
    SidecarCommand::new().path("--config", &mount.file()).path("--state-dir", folder).start()
}

#[test]
fn state_of_another_server_process_does_not_make_ready() {
    let (vllm, mut mount, folder) =
        (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new(), tempfile::tempdir().unwrap());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = start_with_state_dir(&mount, folder.path());
    sidecar.wait_until_ready();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert!(sidecar.terminate().0.success());
    vllm.kill();
    vllm.restart();
    vllm.configure(|config| config.load_time = Duration::from_millis(500));
    let mut sidecar = start_with_state_dir(&mount, folder.path());
    sidecar.wait_until_ready();
    assert_eq!(
        (vllm.adapters(), vllm.count_requests("use v1")),
        (vec!["v1".to_owned()], 2),
        "ready before the adapter was back"
    );
}

#[test]
fn restart_without_state_dir_verifies_everything_again() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    for probes in 1..=2 {
        let mut sidecar = SidecarProgram::start_with_mount(&mount);
        sidecar.wait_until_ready();
        assert_eq!((vllm.count_requests("use v1"), vllm.count_requests("load v1 /adapters/v1")), (probes, 1));
        assert!(sidecar.terminate().0.success());
    }
}

#[test]
fn fast_vllm_restart_makes_unready_until_adapters_are_back() {
    let mut testbed = ProgramTestbed::with_verified(&["v1", "v2"]);
    for _ in 0..3 {
        testbed.vllm.configure(|config| config.load_time = Duration::from_millis(700));
        testbed.vllm.kill();
        testbed.vllm.restart();
        // `/readyz` answers from a poll that is at most 250 ms old.
        thread::sleep(Duration::from_millis(300));
        assert!(!testbed.sidecar.readiness().0, "{:?}", testbed.sidecar.readiness());
        testbed.sidecar.wait_until_ready();
        assert_eq!(testbed.vllm.adapters(), ["v1", "v2"]);
        testbed.sidecar.wait_for_state("v2", AdapterState::Verified);
    }
}

#[test]
fn registered_counts_as_verified_with_probes_disabled() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).args(["--probe=false"]).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    assert_eq!(vllm.requests(), ["load v1 /adapters/v1"]);
}
