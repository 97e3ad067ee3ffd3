//! What readiness waits for after a start, and what it does not.

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
    vllm.configure(|knobs| drop(knobs.failing.insert(name.to_owned(), (404, NOT_FOUND.to_owned()))));
}

fn readiness_reason(sidecar: &SidecarProgram) -> String {
    let (ready, words) = sidecar.readiness();
    let reason = words.split(':').next().unwrap_or_default();
    if ready { "Ready".to_owned() } else { reason.to_owned() }
}

#[test]
fn a_load_that_hangs_holds_readiness_for_the_time_to_settle_and_not_longer() {
    let knobs = FakeVllmConfig { hanging: ["slow".to_owned()].into(), ..FakeVllmConfig::default() };
    let (vllm, mut mount) = (FakeVllm::start(knobs), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["slow", "v1"], &[]), None);
    let started = Instant::now();
    let mut sidecar =
        SidecarCommand::new().path("--config", &mount.file()).args(["--settle-timeout", "1500ms"]).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert_eq!(readiness_reason(&sidecar), "Settling", "what is fine is verified beside what hangs");
    sidecar.wait_until_ready();
    assert!(started.elapsed() >= Duration::from_millis(1500), "ready after {:?}", started.elapsed());
    assert_eq!(sidecar.adapter_state("slow"), Some(AdapterState::Loading));
    // Never again: not for this one, and not for another.
    vllm.configure(|knobs| {
        knobs.hanging.insert("slow2".to_owned());
    });
    mount.update(&adapters_file(vllm.port(), &["slow", "v1", "slow2"], &[]), None);
    sidecar.wait_for_state("slow2", AdapterState::Loading);
    assert_eq!(readiness_reason(&sidecar), "Ready");
}

/// What holds readiness for as long as it takes: this text in the file or this key of the operator.
fn assert_unready_until_verified(user: impl Fn(u16) -> String, operator: Option<&str>) {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    fail_loads(&vllm, "needed");
    mount.update(&user(vllm.port()), operator);
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).args(["--settle-timeout", "300ms"]).start();
    sidecar.wait_for_state("needed", AdapterState::Failed);
    let until = Instant::now() + Duration::from_millis(800);
    while Instant::now() < until {
        let words = sidecar.readiness().1;
        assert!(words.starts_with("AdaptersNotVerified") && words.contains("needed"), "{words}");
        thread::sleep(Duration::from_millis(50));
    }
    vllm.configure(|knobs| knobs.failing.clear());
    sidecar.wait_until_ready();
    assert_eq!(sidecar.adapter_state("needed"), Some(AdapterState::Verified));
}

#[test]
fn what_is_required_holds_it_until_it_is_verified() {
    let user = |port| {
        adapters_file(port, &["needed"], &[]).replace("/adapters/needed", "/adapters/needed\n      required: true")
    };
    assert_unready_until_verified(user, None);
}

#[test]
fn what_serves_holds_it_until_it_is_verified() {
    assert_unready_until_verified(|port| adapters_file(port, &["needed"], &[]), Some("serving: [needed]\n"));
}

#[test]
fn a_bad_adapter_holds_nothing_up() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    fail_loads(&vllm, "bad");
    mount.update(&adapters_file(vllm.port(), &["bad", "v1"], &[]), None);
    let started = Instant::now();
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    sidecar.wait_until_ready();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "it has {:?} to settle, and nothing to settle",
        started.elapsed()
    );
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
    assert_eq!(sidecar.adapter_state("bad"), Some(AdapterState::Failed));
}

fn start_with_state_dir(mount: &ConfigMapMount, folder: &Path) -> SidecarProgram {
    SidecarCommand::new().path("--config", &mount.file()).path("--state-dir", folder).start()
}

#[test]
fn what_was_kept_of_another_process_of_the_server_makes_nothing_ready() {
    let (vllm, mut mount, folder) =
        (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new(), tempfile::tempdir().unwrap());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = start_with_state_dir(&mount, folder.path());
    sidecar.wait_until_ready();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert!(sidecar.terminate().0.success());
    vllm.kill();
    vllm.restart();
    vllm.configure(|knobs| knobs.load_time = Duration::from_millis(500));
    let mut sidecar = start_with_state_dir(&mount, folder.path());
    sidecar.wait_until_ready();
    assert_eq!(
        (vllm.adapters(), vllm.count_requests("use v1")),
        (vec!["v1".to_owned()], 2),
        "ready before it was back"
    );
}

#[test]
fn without_a_folder_to_keep_it_in_a_start_beside_the_same_server_proves_everything_again() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    for proofs in 1..=2 {
        let mut sidecar = SidecarProgram::start_with_mount(&mount);
        sidecar.wait_until_ready();
        assert_eq!((vllm.count_requests("use v1"), vllm.count_requests("load v1 /adapters/v1")), (proofs, 1));
        assert!(sidecar.terminate().0.success());
    }
}

#[test]
fn a_vllm_that_restarts_faster_than_anybody_asks_is_not_ready_before_it_has_back_what_it_had() {
    let mut bed = ProgramTestbed::with_verified(&["v1", "v2"]);
    for _ in 0..3 {
        bed.vllm.configure(|knobs| knobs.load_time = Duration::from_millis(700));
        bed.vllm.kill();
        bed.vllm.restart();
        // What is answered is at most a quarter of a second old.
        thread::sleep(Duration::from_millis(300));
        assert!(!bed.sidecar.readiness().0, "{:?}", bed.sidecar.readiness());
        bed.sidecar.wait_until_ready();
        assert_eq!(bed.vllm.adapters(), ["v1", "v2"]);
        bed.sidecar.wait_for_state("v2", AdapterState::Verified);
    }
}

#[test]
fn without_probes_nothing_is_completed_and_what_is_registered_counts() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).args(["--probe=false"]).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    assert_eq!(vllm.requests(), ["load v1 /adapters/v1"]);
}
