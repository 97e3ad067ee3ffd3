//! SIGTERM.

use crate::{bed::Bed, fake::Knobs};
use std::time::Duration;

#[test]
fn told_to_end_it_ends_well_and_at_once_and_leaves_vllm_as_it_is() {
    let bed = Bed::settled(&["v1"]);
    let asked = bed.vllm.log();
    let (status, took, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_millis(800), "it took {took:?}");
    assert_eq!((bed.vllm.adapters(), bed.vllm.log()), (vec!["v1".to_owned()], asked));
}

#[test]
fn a_call_under_way_is_finished_and_one_that_hangs_is_not_waited_for() {
    let mut bed = Bed::settled(&["v1"]);
    bed.vllm.set(|knobs| knobs.load_time = Duration::from_millis(400));
    bed.swap(&["v1", "v2"], &[], None);
    bed.sidecar.until("the load", |_| (bed.vllm.count("load v2 /adapters/v2") == 1).then_some(()));
    let (status, _, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert_eq!(bed.vllm.adapters(), ["v1", "v2"]);

    let mut bed = Bed::settled(&["v1"]);
    bed.vllm.set(|knobs: &mut Knobs| {
        knobs.hanging.insert("v2".to_owned());
    });
    bed.swap(&["v1", "v2"], &[], None);
    bed.sidecar.until("the load", |_| (bed.vllm.count("load v2 /adapters/v2") == 1).then_some(()));
    let (status, took, log) = bed.sidecar.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(took < Duration::from_millis(2500), "it took {took:?}");
}
