//! SIGTERM.

use crate::{bed::Bed, fake::Knobs};
use rollora_api::sidecar_status::AdapterState;
use std::time::{Duration, Instant};

#[test]
fn told_to_end_it_ends_well_and_at_once_and_leaves_vllm_as_it_is() {
    let bed = Bed::settled(&["v1"]);
    let asked = bed.vllm.log();
    let (status, took, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_millis(800), "it took {took:?}");
    assert_eq!((bed.vllm.adapters(), bed.vllm.log()), (vec!["v1".to_owned()], asked));
}

/// A sidecar that has asked for `v2`, which takes its time, or for ever.
fn while_v2_loads(knobs: impl FnOnce(&mut Knobs), args: &[&str]) -> Bed {
    let mut bed = Bed::settled_with(&["v1"], args);
    bed.vllm.set(knobs);
    bed.swap(&["v1", "v2"], &[], None);
    bed.sidecar.until("the load", |_| (bed.vllm.count("load v2 /adapters/v2") == 1).then_some(()));
    bed
}

fn never(knobs: &mut Knobs) {
    knobs.hanging.insert("v2".to_owned());
}

#[test]
fn a_call_under_way_is_finished_while_it_goes_on_telling_and_nothing_new_is_begun() {
    let mut bed = while_v2_loads(|knobs| knobs.load_time = Duration::from_millis(2500), &[]);
    bed.sidecar.signal();
    bed.sidecar.until("it has heard", |sidecar| sidecar.said("told to end").then_some(()));
    bed.swap(&["v1", "v2", "v3"], &[], None);
    let (began, mut answers) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(1200) {
        // vLLM is as well as before: whoever asks goes on sending requests there.
        assert!(bed.sidecar.ready().0);
        assert_eq!(bed.sidecar.state("v2"), Some(AdapterState::Loading));
        assert_eq!(bed.sidecar.get("/livez").0, 200);
        answers += 1;
    }
    assert!(answers > 3, "{answers}");
    let (status, took, log) = bed.sidecar.wait();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_secs(4), "it took {took:?}");
    assert_eq!(bed.vllm.adapters(), ["v1", "v2"]);
    for entry in ["use v2", "load v3 /adapters/v3"] {
        assert_eq!(bed.vllm.count(entry), 0, "{entry} was begun after SIGTERM");
    }
}

#[test]
fn a_call_that_hangs_is_given_up_after_the_stop_timeout() {
    let bed = while_v2_loads(never, &["--stop-timeout", "700ms"]);
    let (status, took, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took > Duration::from_millis(650) && took < Duration::from_millis(2500), "it took {took:?}");
    let said = |words: &str| log.iter().any(|line| line.contains(words));
    assert!(said("not waited for any longer") && said("adapter=v2"), "{log:#?}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut bed = while_v2_loads(never, &[]);
    bed.sidecar.signal();
    bed.sidecar.until("it has heard", |sidecar| sidecar.said("told to end").then_some(()));
    let (status, took, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_millis(800), "it took {took:?}");
}
