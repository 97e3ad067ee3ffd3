//! The time that an adapter is given after its last use.

use crate::{
    bed::{Mount, Program, Start, adapters},
    fake::{Fake, Knobs},
};
use rollora_api::sidecar_status::AdapterState;
use std::{
    thread,
    time::{Duration, Instant},
};

const GRACE: Duration = Duration::from_secs(1);

/// A vLLM with `v1` that was used a moment ago, and a file that does not want it any more.
fn retiring() -> (Fake, Mount, Program) {
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    mount.swap(&adapters(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = Start::new().path("--config", &mount.file()).args(["--unload-grace", "1s"]).start();
    sidecar.until_state("v1", AdapterState::Verified);
    vllm.use_now("v1");
    mount.swap(&adapters(vllm.port(), &[], &["v1"]), None);
    sidecar.until_state("v1", AdapterState::Unloading);
    (vllm, mount, sidecar)
}

#[test]
fn one_that_is_put_back_within_it_is_not_unloaded_and_not_proven_again() {
    let (vllm, mut mount, mut sidecar) = retiring();
    thread::sleep(GRACE / 2);
    mount.swap(&adapters(vllm.port(), &["v1"], &[]), None);
    sidecar.until_state("v1", AdapterState::Verified);
    let over = Instant::now() + 2 * GRACE;
    while Instant::now() < over {
        assert_eq!(sidecar.state("v1"), Some(AdapterState::Verified));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(vllm.log(), ["load v1 /adapters/v1", "use v1"]);
}

#[test]
fn each_use_begins_it_anew_and_status_tells_the_last_one() {
    let (vllm, _mount, mut sidecar) = retiring();
    let mut told = Vec::new();
    for _ in 0..4 {
        thread::sleep(GRACE / 2);
        assert_eq!(vllm.count("unload v1"), 0);
        vllm.use_now("v1");
        told.extend(sidecar.status().adapters[0].last_used);
    }
    let last = Instant::now();
    sidecar.until_state("v1", AdapterState::Gone);
    assert!(last.elapsed() >= GRACE, "unloaded {:?} after its last use", last.elapsed());
    assert!(told.is_sorted() && told.first() < told.last(), "{told:?}");
    assert_eq!(vllm.count("unload v1"), 1);
}
