//! What is told in each state.

use crate::bed::{Bed, bad, ids};
use rollora_api::{
    operator_directives::OperatorDirectives,
    sidecar_status::AdapterState::{
        AwaitingAdmission, Failed, Gone, InBothLists, Loaded, Loading, Pending, Rejected, Unlisted, UnloadHeld,
        Unloading, Verified,
    },
};

fn governed() -> OperatorDirectives {
    OperatorDirectives { managed: vec!["v*".to_owned()], ..OperatorDirectives::default() }
}

#[test]
fn an_adapter_goes_from_pending_to_verified() {
    let mut bed = Bed::listing(&["a"]);
    let mut states = vec![bed.state("a")];
    for _ in 0..2 {
        bed.begin();
        states.push(bed.state("a"));
        bed.end("a", Ok(()));
        states.push(bed.state("a"));
    }
    assert_eq!(states, [Pending, Loading, Loaded, Loaded, Verified]);
}

#[test]
fn a_failed_probe_is_a_failed_adapter() {
    let mut bed = Bed::listing(&["a"]);
    bed.begin();
    bed.end("a", Ok(()));
    bed.begin();
    bed.end("a", Err(bad("a")));
    assert_eq!((bed.state("a"), bed.status().is_resident(&crate::bed::id("a"))), (Failed, false));
}

#[test]
fn lists_and_key_decide_what_a_registered_adapter_is_called() {
    let mut bed = Bed::settled(&["v1"]);
    bed.desire(&["v1"], &["v1"], None);
    assert_eq!(bed.state("v1"), InBothLists);
    bed.desire(&[], &[], None);
    assert_eq!(bed.state("v1"), Unlisted);
    bed.desire(&[], &["v1"], Some(OperatorDirectives { serving: ids(&["v1"]), ..governed() }));
    assert_eq!(bed.state("v1"), UnloadHeld);
    bed.desire(&["v1"], &[], Some(governed()));
    assert_eq!(bed.state("v1"), Verified, "it was proven before it had to wait");
    bed.desire(&["v1"], &[], Some(OperatorDirectives { rejected: ids(&["v1"]), ..governed() }));
    assert_eq!(bed.state("v1"), Unloading);
    bed.desire(&[], &["v1"], None);
    assert_eq!(bed.state("v1"), Unloading);
}

#[test]
fn lists_and_key_decide_what_an_absent_adapter_is_called() {
    let mut bed = Bed::up();
    bed.desire(&["v1"], &[], Some(governed()));
    assert_eq!(bed.state("v1"), AwaitingAdmission);
    bed.desire(&["v1"], &[], Some(OperatorDirectives { rejected: ids(&["v1"]), ..governed() }));
    assert_eq!(bed.state("v1"), Rejected);
    bed.desire(&[], &["v1"], Some(OperatorDirectives { serving: ids(&["v1"]), ..OperatorDirectives::default() }));
    assert_eq!(bed.state("v1"), Pending, "it serves, so it is loaded again");
    bed.desire(&[], &["v1"], None);
    assert_eq!(bed.state("v1"), Gone);
}

#[test]
fn gone_is_only_said_of_a_server_that_answers() {
    let mut bed = Bed::up();
    bed.desire(&[], &["a"], None);
    assert_eq!(bed.state("a"), Gone);
    bed.process = None;
    bed.look();
    assert_eq!((bed.state("a"), bed.status().server), (Unloading, None));
}

#[test]
fn an_id_that_is_a_base_model_is_said_to_be_one() {
    for (exist, not_exist) in [(["base"].as_slice(), [].as_slice()), (&[], &["base"])] {
        let mut bed = Bed::up();
        bed.desire(exist, not_exist, None);
        assert_eq!((bed.state("base"), bed.reason("base")), (Failed, "NameConflict".to_owned()));
    }
}

#[test]
fn the_server_is_described() {
    let mut bed = Bed::settled(&["a"]);
    let status = bed.status();
    let server = status.server.unwrap();
    assert_eq!((server.endpoint.as_str(), server.start.as_str()), ("http://server", "1"));
    assert_eq!((status.base_models, status.max_loras, status.problem), (vec!["base".to_owned()], Some(2), None));
    assert!(!status.config.operator_directives);
    bed.desire(&["a"], &[], Some(governed()));
    assert!(bed.status().config.operator_directives);
}
