//! Tests of the shutdown after SIGTERM.

use crate::{fake::FakeVllmConfig, testbed::ProgramTestbed};
use rollora_api::sidecar_status::AdapterState;
use std::time::{Duration, Instant};

#[test]
fn sigterm_ends_it_quickly_and_leaves_vllm_unchanged() {
    let testbed = ProgramTestbed::with_verified(&["v1"]);
    let requests = testbed.vllm.requests();
    let (status, took, log) = testbed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_millis(800), "it took {took:?}");
    assert_eq!((testbed.vllm.adapters(), testbed.vllm.requests()), (vec!["v1".to_owned()], requests));
}

/// Starts a sidecar and waits until its load of `v2`, which is slow or hangs, has started.
fn testbed_loading_v2(config: impl FnOnce(&mut FakeVllmConfig), args: &[&str]) -> ProgramTestbed {
    let mut testbed = ProgramTestbed::with_verified_and_args(&["v1"], args);
    testbed.vllm.configure(config);
    testbed.update_file(&["v1", "v2"], &[], None);
    testbed.sidecar.wait_for("the load", |_| (testbed.vllm.count_requests("load v2 /adapters/v2") == 1).then_some(()));
    testbed
}

fn hang_v2(config: &mut FakeVllmConfig) {
    config.hanging.insert("v2".to_owned());
}

#[test]
fn shutdown_finishes_calls_and_answers_but_starts_none() {
    let mut testbed = testbed_loading_v2(|config| config.load_time = Duration::from_millis(2500), &[]);
    testbed.sidecar.send_sigterm();
    testbed.sidecar.wait_for("the shutdown", |sidecar| sidecar.has_logged("shutting down").then_some(()));
    testbed.update_file(&["v1", "v2", "v3"], &[], None);
    let (began, mut answers) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(1200) {
        // vLLM keeps working, so `/readyz` must not change.
        assert!(testbed.sidecar.readiness().0);
        assert_eq!(testbed.sidecar.adapter_state("v2"), Some(AdapterState::Loading));
        assert_eq!(testbed.sidecar.get("/livez").0, 200);
        answers += 1;
    }
    assert!(answers > 3, "{answers}");
    let (status, took, log) = testbed.sidecar.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_secs(4), "it took {took:?}");
    assert_eq!(testbed.vllm.adapters(), ["v1", "v2"]);
    for entry in ["use v2", "load v3 /adapters/v3"] {
        assert_eq!(testbed.vllm.count_requests(entry), 0, "{entry} was started after SIGTERM");
    }
}

#[test]
fn hanging_call_is_abandoned_after_the_stop_timeout() {
    let testbed = testbed_loading_v2(hang_v2, &["--stop-timeout", "700ms"]);
    let (status, took, log) = testbed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took > Duration::from_millis(650) && took < Duration::from_millis(2500), "it took {took:?}");
    let has_logged = |text: &str| log.iter().any(|line| line.contains(text));
    assert!(has_logged("call abandoned at shutdown") && has_logged("adapter=v2"), "{log:#?}");
}

#[test]
fn second_signal_ends_it_immediately() {
    let mut testbed = testbed_loading_v2(hang_v2, &[]);
    testbed.sidecar.send_sigterm();
    testbed.sidecar.wait_for("the shutdown", |sidecar| sidecar.has_logged("shutting down").then_some(()));
    let (status, took, log) = testbed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_millis(800), "it took {took:?}");
}
