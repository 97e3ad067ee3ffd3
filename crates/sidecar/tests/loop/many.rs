//! Many adapters, and some that hang: what is fine is not kept waiting, and vLLM is not asked more than is needed.

use crate::{
    Bed, desired,
    fake::{Fake, Knobs},
    fast, state_of,
};
use rollora_api::sidecar_status::AdapterState;
use rollora_sidecar::Intervals;
use std::time::Duration;

#[tokio::test]
async fn a_hundred_adapters_cost_a_list_of_models_a_pass_and_not_one_each() {
    let fake = Fake::start(Knobs { load_time: Duration::from_millis(5), ..Knobs::default() });
    let mut config = fast(&fake);
    config.policy.intervals = Intervals::default();
    let names: Vec<String> = (0..100).map(|number| format!("a{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bed = Bed::start(config, desired(&names, &[]));
    bed.until_ready().await;
    bed.until("all", |status| status.adapters.iter().all(|adapter| adapter.state == AdapterState::Verified)).await;
    assert_eq!((fake.adapters().len(), fake.most_used_at_once()), (100, 1));
    // One at the start, one in five seconds.
    assert!(fake.models_asked() <= 3, "{} lists", fake.models_asked());
}

#[tokio::test]
async fn a_probe_that_gets_no_answer_on_a_busy_server_is_undecided_and_holds_nothing_up() {
    let fake = Fake::start(Knobs { busy: ["a".to_owned()].into(), ..Knobs::default() });
    let mut config = fast(&fake);
    config.timeouts.probe = Duration::from_millis(900);
    let mut wanted = desired(&["a", "b"], &[]);
    wanted.file.ensure_exist[0].required = true;
    let mut bed = Bed::start(config, wanted);
    let ready = bed.until_ready().await;
    assert_eq!(state_of(&ready, "a"), Some(AdapterState::Loaded), "neither proven nor failed: {ready:#?}");
    let verified = bed.until_state("b", AdapterState::Verified).await;
    assert_eq!((state_of(&verified, "a"), verified.adapters[0].attempts), (Some(AdapterState::Loaded), 0));
    assert_eq!(verified.adapters[0].last_error.as_ref().unwrap().reason, "Timeout");
    assert_eq!(fake.most_used_at_once(), 1, "the one before is given up first");
    fake.set(|knobs| knobs.busy.clear());
    let proven = bed.until_state("a", AdapterState::Verified).await;
    assert!(proven.readiness.ready);
    assert_eq!(fake.count("load a /adapters/a"), 1);
}

#[tokio::test]
async fn adapters_that_fail_delay_no_other_however_many_they_are() {
    let fake = Fake::start(Knobs { load_time: Duration::from_millis(10), ..Knobs::default() });
    let bad: Vec<String> = (0..20).map(|number| format!("bad{number:02}")).collect();
    fake.set(|knobs| {
        for name in &bad {
            knobs.failing.insert(name.clone(), (500, "Call to add_lora method failed: junk".to_owned()));
        }
    });
    let names: Vec<&str> = bad.iter().map(String::as_str).chain(["good"]).collect();
    let mut config = fast(&fake);
    config.policy.max_parallel = 1;
    let mut bed = Bed::start(config, desired(&names, &[]));
    bed.until_ready().await;
    bed.until_state("good", AdapterState::Verified).await;
    // Each bad one was tried once before it, and none twice.
    let place = fake.log().iter().position(|call| call.starts_with("load good"));
    assert_eq!(place, Some(20), "{:?}", fake.log());
}
