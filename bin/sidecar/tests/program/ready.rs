//! `/readyz` and `/livez`.

use crate::{
    bed::{Bed, Mount, Program, Start, adapters},
    fake::{Fake, Knobs},
};
use rollora_api::sidecar_status::AdapterState;
use std::time::{Duration, Instant};

#[test]
fn a_vllm_that_is_not_there_yet_is_waited_for() {
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    vllm.end();
    mount.swap(&adapters(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = Start::new().path("--config", &mount.file()).args(["--health-check-timeout", "100ms"]).start();
    sidecar.until("the reason", |sidecar| sidecar.ready().1.starts_with("Unreachable").then_some(()));
    sidecar.until("the complaint", |sidecar| sidecar.said("vLLM has been away for 100ms").then_some(()));
    assert_eq!(sidecar.get("/livez").0, 200, "waiting is no fault");
    vllm.begin();
    sidecar.until_ready();
    assert_eq!(sidecar.state("v1"), Some(AdapterState::Verified));
}

#[test]
fn readiness_is_off_from_the_moment_vllm_goes_away_until_it_has_back_what_it_had() {
    let mut bed = Bed::settled(&["v1", "v2"]);
    for _ in 0..3 {
        bed.vllm.end();
        let ended = Instant::now();
        bed.sidecar.until("not ready", |sidecar| (!sidecar.ready().0).then_some(()));
        let noticed = ended.elapsed();
        assert!(noticed < Duration::from_secs(1), "noticed after {noticed:?}");
        bed.vllm.begin();
        bed.sidecar.until_ready();
        assert_eq!(bed.vllm.adapters(), ["v1", "v2"], "ready means that it is back");
        assert_eq!(bed.sidecar.state("v2"), Some(AdapterState::Verified));
    }
}

#[test]
fn a_vllm_that_takes_connections_and_says_nothing_is_not_ready() {
    let mut bed = Bed::settled(&["v1"]);
    bed.vllm.set(|knobs| knobs.frozen = true);
    let words = bed.sidecar.until("not ready", |sidecar| {
        let (ready, words) = sidecar.ready();
        (!ready).then_some(words)
    });
    assert!(words.starts_with("NoAnswer: vLLM has not answered for"), "{words}");
    let asked = Instant::now();
    assert!(!bed.sidecar.ready().0);
    assert!(asked.elapsed() < Duration::from_secs(1), "a kubelet waits for a second");
    assert_eq!(bed.sidecar.get("/livez").0, 200);
    bed.vllm.set(|knobs| knobs.frozen = false);
    bed.sidecar.until_ready();
    assert_eq!(bed.vllm.count("load v1 /adapters/v1"), 1, "it was the same server all the time");
}

#[test]
fn a_new_adapter_takes_no_readiness_back_and_a_bad_one_does_not_hold_it() {
    let mut bed = Bed::settled(&["v1"]);
    bed.vllm.set(|knobs| {
        knobs.load_time = Duration::from_millis(300);
        knobs.failing.insert("bad".to_owned(), (404, "Loading lora bad failed: No adapter found for /x".to_owned()));
    });
    bed.swap(&["v1", "v2", "bad"], &[], None);
    bed.sidecar.until("v2 is verified", |sidecar| {
        assert!(sidecar.ready().0);
        (sidecar.state("v2") == Some(AdapterState::Verified)).then_some(())
    });
    bed.sidecar.until_state("bad", AdapterState::Failed);
    let (_, metrics) = bed.sidecar.get("/metrics");
    assert!(metrics.contains("call=\"load\",outcome=\"AdapterNotFound\""), "{metrics}");
    // Beside another process of the server, the bad one is waited for no longer than its first failure.
    bed.vllm.end();
    bed.vllm.begin();
    bed.sidecar.until("not ready", |sidecar| (!sidecar.status().readiness.ready).then_some(()));
    bed.sidecar.until_ready();
}

#[test]
fn a_sidecar_that_starts_again_beside_its_server_is_ready_without_asking_for_anything_again() {
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    mount.swap(&adapters(vllm.port(), &["v1", "v2"], &[]), None);
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let start = Start::new().path("--config", &mount.file()).path("--state-dir", folder.path());
        start.args(["--pod-name", "pod-1"]).start()
    };
    let mut sidecar = start();
    sidecar.until_ready();
    sidecar.until_state("v2", AdapterState::Verified);
    sidecar.until_state("v1", AdapterState::Verified);
    assert!(sidecar.terminate().0.success());
    let asked = vllm.log();
    let mut sidecar = start();
    sidecar.until_ready();
    assert_eq!(["v1", "v2"].map(|name| sidecar.state(name)), [Some(AdapterState::Verified); 2]);
    assert_eq!(vllm.log(), asked, "nothing was loaded or proven again");
    assert!(sidecar.terminate().0.success());
    // What cannot be read is done without.
    std::fs::write(folder.path().join("sidecar.json"), "{").unwrap();
    let mut sidecar = start();
    sidecar.until_ready();
    assert!(sidecar.said("what was kept cannot be read"));
}

#[test]
fn what_a_server_died_of_is_known_also_after_a_restart_of_the_sidecar() {
    let knobs = Knobs { deadly: std::iter::once("bad".to_owned()).collect(), ..Knobs::default() };
    let (vllm, mut mount) = (Fake::start(knobs), Mount::new());
    mount.swap(&adapters(vllm.port(), &["bad"], &[]), None);
    let folder = tempfile::tempdir().unwrap();
    let start = || Start::new().path("--config", &mount.file()).path("--state-dir", folder.path()).start();
    let mut sidecar = start();
    sidecar.until("the first death", |_| (!vllm.is_running()).then_some(()));
    sidecar.until_state("bad", AdapterState::ServerDied);
    vllm.begin();
    sidecar.until_ready();
    assert!(sidecar.terminate().0.success());
    let mut sidecar = start();
    sidecar.until_ready();
    let adapter = sidecar.status().adapters.remove(0);
    assert_eq!(adapter.state, AdapterState::ServerDied);
    assert!(adapter.last_error.unwrap().message.contains("vLLM ended while it loaded or first used adapter `bad`"));
    assert_eq!(vllm.count("use bad"), 1);
}

#[test]
fn one_that_is_asked_before_it_knows_anything_is_not_ready() {
    let mut mount = Mount::new();
    mount.swap(&adapters(1, &[], &[]), None);
    let sidecar = Program::beside(&mount);
    let (ready, words) = sidecar.ready();
    assert!(!ready, "{words}");
}
