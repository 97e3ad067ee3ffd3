//! Many adapters, and some that hang: what is fine is not kept waiting, and vLLM is not asked more than is needed.

use crate::{
    LoopTestbed, adapter_state, desired,
    fake::{FakeVllm, FakeVllmConfig},
    fast_config,
};
use rollora_api::sidecar_status::AdapterState;
use rollora_sidecar::PollIntervals;
use std::time::Duration;

#[tokio::test]
async fn a_hundred_adapters_cost_a_list_of_models_a_pass_and_not_one_each() {
    let fake = FakeVllm::start(FakeVllmConfig { load_time: Duration::from_millis(5), ..FakeVllmConfig::default() });
    let mut config = fast_config(&fake);
    config.policy.intervals = PollIntervals::default();
    let names: Vec<String> = (0..100).map(|number| format!("a{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bed = LoopTestbed::start(config, desired(&names, &[]));
    bed.wait_until_ready().await;
    bed.wait_for("all", |status| status.adapters.iter().all(|adapter| adapter.state == AdapterState::Verified)).await;
    assert_eq!((fake.adapters().len(), fake.max_concurrent_uses()), (100, 1));
    // One at the start, one in five seconds.
    assert!(fake.models_request_count() <= 3, "{} lists", fake.models_request_count());
}

#[tokio::test]
async fn a_probe_that_gets_no_answer_on_a_busy_server_is_undecided_and_holds_nothing_up() {
    let fake = FakeVllm::start(FakeVllmConfig { hanging_uses: ["a".to_owned()].into(), ..FakeVllmConfig::default() });
    let mut config = fast_config(&fake);
    config.timeouts.probe = Duration::from_millis(900);
    let mut wanted = desired(&["a", "b"], &[]);
    wanted.file.ensure_exist[0].required = true;
    let mut bed = LoopTestbed::start(config, wanted);
    let ready = bed.wait_until_ready().await;
    assert_eq!(adapter_state(&ready, "a"), Some(AdapterState::Loaded), "neither proven nor failed: {ready:#?}");
    let verified = bed.wait_for_state("b", AdapterState::Verified).await;
    assert_eq!((adapter_state(&verified, "a"), verified.adapters[0].attempts), (Some(AdapterState::Loaded), 0));
    assert_eq!(verified.adapters[0].last_error.as_ref().unwrap().reason, "Timeout");
    assert_eq!(fake.max_concurrent_uses(), 1, "the one before is given up first");
    fake.configure(|knobs| knobs.hanging_uses.clear());
    let proven = bed.wait_for_state("a", AdapterState::Verified).await;
    assert!(proven.readiness.ready);
    assert_eq!(fake.count_requests("load a /adapters/a"), 1);
}

#[tokio::test]
async fn adapters_that_fail_delay_no_other_however_many_they_are() {
    let fake = FakeVllm::start(FakeVllmConfig { load_time: Duration::from_millis(10), ..FakeVllmConfig::default() });
    let bad: Vec<String> = (0..20).map(|number| format!("bad{number:02}")).collect();
    fake.configure(|knobs| {
        for name in &bad {
            knobs.failing.insert(name.clone(), (500, "Call to add_lora method failed: junk".to_owned()));
        }
    });
    let names: Vec<&str> = bad.iter().map(String::as_str).chain(["good"]).collect();
    let mut config = fast_config(&fake);
    config.policy.max_parallel = 1;
    let mut bed = LoopTestbed::start(config, desired(&names, &[]));
    bed.wait_until_ready().await;
    bed.wait_for_state("good", AdapterState::Verified).await;
    // Each bad one was tried once before it, and none twice.
    let place = fake.requests().iter().position(|call| call.starts_with("load good"));
    assert_eq!(place, Some(20), "{:?}", fake.requests());
}
