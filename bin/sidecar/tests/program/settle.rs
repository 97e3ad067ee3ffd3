//! What readiness waits for after a start, and what it does not.

use crate::{
    bed::{Bed, Mount, Program, Start, adapters},
    fake::{Fake, Knobs},
};
use rollora_api::sidecar_status::AdapterState;
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

const NOT_FOUND: &str = "Loading lora bad failed: No adapter found for /x";

fn failing(vllm: &Fake, name: &str) {
    vllm.set(|knobs| drop(knobs.failing.insert(name.to_owned(), (404, NOT_FOUND.to_owned()))));
}

fn reason(sidecar: &Program) -> String {
    let (ready, words) = sidecar.ready();
    let reason = words.split(':').next().unwrap_or_default();
    if ready { "Ready".to_owned() } else { reason.to_owned() }
}

#[test]
fn a_load_that_hangs_holds_readiness_for_the_time_to_settle_and_not_longer() {
    let knobs = Knobs { hanging: ["slow".to_owned()].into(), ..Knobs::default() };
    let (vllm, mut mount) = (Fake::start(knobs), Mount::new());
    mount.swap(&adapters(vllm.port(), &["slow", "v1"], &[]), None);
    let started = Instant::now();
    let mut sidecar = Start::new().path("--config", &mount.file()).args(["--settle-timeout", "1500ms"]).start();
    sidecar.until_state("v1", AdapterState::Verified);
    assert_eq!(reason(&sidecar), "Settling", "what is fine is verified beside what hangs");
    sidecar.until_ready();
    assert!(started.elapsed() >= Duration::from_millis(1500), "ready after {:?}", started.elapsed());
    assert_eq!(sidecar.state("slow"), Some(AdapterState::Loading));
    // Never again: not for this one, and not for another.
    vllm.set(|knobs| {
        knobs.hanging.insert("slow2".to_owned());
    });
    mount.swap(&adapters(vllm.port(), &["slow", "v1", "slow2"], &[]), None);
    sidecar.until_state("slow2", AdapterState::Loading);
    assert_eq!(reason(&sidecar), "Ready");
}

/// What holds readiness for as long as it takes: this text in the file or this key of the operator.
fn holds_until_it_is_verified(user: impl Fn(u16) -> String, operator: Option<&str>) {
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    failing(&vllm, "needed");
    mount.swap(&user(vllm.port()), operator);
    let mut sidecar = Start::new().path("--config", &mount.file()).args(["--settle-timeout", "300ms"]).start();
    sidecar.until_state("needed", AdapterState::Failed);
    let until = Instant::now() + Duration::from_millis(800);
    while Instant::now() < until {
        let words = sidecar.ready().1;
        assert!(words.starts_with("AdaptersNotVerified") && words.contains("needed"), "{words}");
        thread::sleep(Duration::from_millis(50));
    }
    vllm.set(|knobs| knobs.failing.clear());
    sidecar.until_ready();
    assert_eq!(sidecar.state("needed"), Some(AdapterState::Verified));
}

#[test]
fn what_is_required_holds_it_until_it_is_verified() {
    let user =
        |port| adapters(port, &["needed"], &[]).replace("/adapters/needed", "/adapters/needed\n      required: true");
    holds_until_it_is_verified(user, None);
}

#[test]
fn what_serves_holds_it_until_it_is_verified() {
    holds_until_it_is_verified(|port| adapters(port, &["needed"], &[]), Some("serving: [needed]\n"));
}

#[test]
fn a_bad_adapter_holds_nothing_up() {
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    failing(&vllm, "bad");
    mount.swap(&adapters(vllm.port(), &["bad", "v1"], &[]), None);
    let started = Instant::now();
    let mut sidecar = Program::beside(&mount);
    sidecar.until_ready();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "it has {:?} to settle, and nothing to settle",
        started.elapsed()
    );
    assert_eq!(sidecar.state("v1"), Some(AdapterState::Verified));
    assert_eq!(sidecar.state("bad"), Some(AdapterState::Failed));
}

fn with_state(mount: &Mount, folder: &Path) -> Program {
    Start::new().path("--config", &mount.file()).path("--state-dir", folder).start()
}

#[test]
fn what_was_kept_of_another_process_of_the_server_makes_nothing_ready() {
    let (vllm, mut mount, folder) = (Fake::start(Knobs::default()), Mount::new(), tempfile::tempdir().unwrap());
    mount.swap(&adapters(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = with_state(&mount, folder.path());
    sidecar.until_ready();
    sidecar.until_state("v1", AdapterState::Verified);
    assert!(sidecar.terminate().0.success());
    vllm.end();
    vllm.begin();
    vllm.set(|knobs| knobs.load_time = Duration::from_millis(500));
    let mut sidecar = with_state(&mount, folder.path());
    sidecar.until_ready();
    assert_eq!((vllm.adapters(), vllm.count("use v1")), (vec!["v1".to_owned()], 2), "ready before it was back");
}

#[test]
fn without_a_folder_to_keep_it_in_a_start_beside_the_same_server_proves_everything_again() {
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    mount.swap(&adapters(vllm.port(), &["v1"], &[]), None);
    for proofs in 1..=2 {
        let mut sidecar = Program::beside(&mount);
        sidecar.until_ready();
        assert_eq!((vllm.count("use v1"), vllm.count("load v1 /adapters/v1")), (proofs, 1));
        assert!(sidecar.terminate().0.success());
    }
}

#[test]
fn a_vllm_that_restarts_faster_than_anybody_asks_is_not_ready_before_it_has_back_what_it_had() {
    let mut bed = Bed::settled(&["v1", "v2"]);
    for _ in 0..3 {
        bed.vllm.set(|knobs| knobs.load_time = Duration::from_millis(700));
        bed.vllm.end();
        bed.vllm.begin();
        // What is answered is at most a quarter of a second old.
        thread::sleep(Duration::from_millis(300));
        assert!(!bed.sidecar.ready().0, "{:?}", bed.sidecar.ready());
        bed.sidecar.until_ready();
        assert_eq!(bed.vllm.adapters(), ["v1", "v2"]);
        bed.sidecar.until_state("v2", AdapterState::Verified);
    }
}

#[test]
fn without_probes_nothing_is_completed_and_what_is_registered_counts() {
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    mount.swap(&adapters(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = Start::new().path("--config", &mount.file()).args(["--probe=false"]).start();
    sidecar.until_state("v1", AdapterState::Verified);
    sidecar.until_ready();
    assert_eq!(vllm.log(), ["load v1 /adapters/v1"]);
}
