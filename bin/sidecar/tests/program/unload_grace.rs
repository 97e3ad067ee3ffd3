//! Tests of the unload grace, the time after the last use in which an adapter is kept.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use std::{
    thread,
    time::{Duration, Instant},
};

const GRACE: Duration = Duration::from_secs(1);

/// Starts a sidecar whose `v1` was just used and then listed under `ensureNotExist`.
fn start_unloading_v1() -> (FakeVllm, ConfigMapMount, SidecarProgram) {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).args(["--unload-grace", "1s"]).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    vllm.mark_used("v1");
    mount.update(&adapters_file(vllm.port(), &[], &["v1"]), None);
    sidecar.wait_for_state("v1", AdapterState::Unloading);
    (vllm, mount, sidecar)
}

#[test]
fn adapter_relisted_within_the_grace_is_left_alone() {
    let (vllm, mut mount, mut sidecar) = start_unloading_v1();
    thread::sleep(GRACE / 2);
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let grace_end = Instant::now() + 2 * GRACE;
    while Instant::now() < grace_end {
        assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(vllm.requests(), ["load v1 /adapters/v1", "use v1"]);
}

#[test]
fn each_use_restarts_the_grace_and_status_shows_the_last() {
    let (vllm, _mount, mut sidecar) = start_unloading_v1();
    let mut last_uses = Vec::new();
    for _ in 0..4 {
        thread::sleep(GRACE / 2);
        assert_eq!(vllm.count_requests("unload v1"), 0);
        vllm.mark_used("v1");
        last_uses.extend(sidecar.status().adapters[0].last_used);
    }
    let last_use = Instant::now();
    sidecar.wait_for_state("v1", AdapterState::Gone);
    assert!(last_use.elapsed() >= GRACE, "unloaded {:?} after its last use", last_use.elapsed());
    assert!(last_uses.is_sorted() && last_uses.first() < last_uses.last(), "{last_uses:?}");
    assert_eq!(vllm.count_requests("unload v1"), 1);
}
