//! SIGTERM.

use crate::{fake::FakeVllmConfig, testbed::ProgramTestbed};
use rollora_api::sidecar_status::AdapterState;
use std::time::{Duration, Instant};

#[test]
fn told_to_end_it_ends_well_and_at_once_and_leaves_vllm_as_it_is() {
    let bed = ProgramTestbed::with_verified(&["v1"]);
    let asked = bed.vllm.requests();
    let (status, took, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_millis(800), "it took {took:?}");
    assert_eq!((bed.vllm.adapters(), bed.vllm.requests()), (vec!["v1".to_owned()], asked));
}

/// A sidecar that has asked for `v2`, which takes its time, or for ever.
fn testbed_loading_v2(knobs: impl FnOnce(&mut FakeVllmConfig), args: &[&str]) -> ProgramTestbed {
    let mut bed = ProgramTestbed::with_verified_and_args(&["v1"], args);
    bed.vllm.configure(knobs);
    bed.update_file(&["v1", "v2"], &[], None);
    bed.sidecar.wait_for("the load", |_| (bed.vllm.count_requests("load v2 /adapters/v2") == 1).then_some(()));
    bed
}

fn hang_v2(knobs: &mut FakeVllmConfig) {
    knobs.hanging.insert("v2".to_owned());
}

#[test]
fn a_call_under_way_is_finished_while_it_goes_on_telling_and_nothing_new_is_begun() {
    let mut bed = testbed_loading_v2(|knobs| knobs.load_time = Duration::from_millis(2500), &[]);
    bed.sidecar.send_sigterm();
    bed.sidecar.wait_for("it has heard", |sidecar| sidecar.has_logged("told to end").then_some(()));
    bed.update_file(&["v1", "v2", "v3"], &[], None);
    let (began, mut answers) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(1200) {
        // vLLM is as well as before: whoever asks goes on sending requests there.
        assert!(bed.sidecar.readiness().0);
        assert_eq!(bed.sidecar.adapter_state("v2"), Some(AdapterState::Loading));
        assert_eq!(bed.sidecar.get("/livez").0, 200);
        answers += 1;
    }
    assert!(answers > 3, "{answers}");
    let (status, took, log) = bed.sidecar.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_secs(4), "it took {took:?}");
    assert_eq!(bed.vllm.adapters(), ["v1", "v2"]);
    for entry in ["use v2", "load v3 /adapters/v3"] {
        assert_eq!(bed.vllm.count_requests(entry), 0, "{entry} was begun after SIGTERM");
    }
}

#[test]
fn a_call_that_hangs_is_given_up_after_the_stop_timeout() {
    let bed = testbed_loading_v2(hang_v2, &["--stop-timeout", "700ms"]);
    let (status, took, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took > Duration::from_millis(650) && took < Duration::from_millis(2500), "it took {took:?}");
    let said = |words: &str| log.iter().any(|line| line.contains(words));
    assert!(said("not waited for any longer") && said("adapter=v2"), "{log:#?}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut bed = testbed_loading_v2(hang_v2, &[]);
    bed.sidecar.send_sigterm();
    bed.sidecar.wait_for("it has heard", |sidecar| sidecar.has_logged("told to end").then_some(()));
    let (status, took, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_millis(800), "it took {took:?}");
}
