//! The time that an adapter is given after its last use.

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

/// A vLLM with `v1` that was used a moment ago, and a file that does not want it any more.
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
fn one_that_is_put_back_within_it_is_not_unloaded_and_not_proven_again() {
    let (vllm, mut mount, mut sidecar) = start_unloading_v1();
    thread::sleep(GRACE / 2);
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let over = Instant::now() + 2 * GRACE;
    while Instant::now() < over {
        assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(vllm.requests(), ["load v1 /adapters/v1", "use v1"]);
}

#[test]
fn each_use_begins_it_anew_and_status_tells_the_last_one() {
    let (vllm, _mount, mut sidecar) = start_unloading_v1();
    let mut told = Vec::new();
    for _ in 0..4 {
        thread::sleep(GRACE / 2);
        assert_eq!(vllm.count_requests("unload v1"), 0);
        vllm.mark_used("v1");
        told.extend(sidecar.status().adapters[0].last_used);
    }
    let last = Instant::now();
    sidecar.wait_for_state("v1", AdapterState::Gone);
    assert!(last.elapsed() >= GRACE, "unloaded {:?} after its last use", last.elapsed());
    assert!(told.is_sorted() && told.first() < told.last(), "{told:?}");
    assert_eq!(vllm.count_requests("unload v1"), 1);
}
