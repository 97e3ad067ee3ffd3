//! Tests of many adapters, some of which hang or fail: others are not delayed, and vLLM gets no needless requests.

use crate::{
    LoopTestbed, adapter_state, desired,
    fake::{FakeVllm, FakeVllmConfig},
    fast_config,
};
use rollora_api::sidecar_status::AdapterState;
use rollora_sidecar::PollIntervals;
use std::time::Duration;

#[tokio::test]
async fn hundred_loads_do_not_need_one_model_list_each() {
    let fake = FakeVllm::start(FakeVllmConfig { load_time: Duration::from_millis(5), ..FakeVllmConfig::default() });
    let mut config = fast_config(&fake);
    config.policy.intervals = PollIntervals::default();
    let names: Vec<String> = (0..100).map(|number| format!("a{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut testbed = LoopTestbed::start(config, desired(&names, &[]));
    testbed.wait_until_ready().await;
    testbed
        .wait_for("all", |status| status.adapters.iter().all(|adapter| adapter.state == AdapterState::Verified))
        .await;
    assert_eq!((fake.adapters().len(), fake.max_concurrent_uses()), (100, 1));
    // One at the start, one in five seconds.
    assert!(fake.models_request_count() <= 3, "{} model lists", fake.models_request_count());
}

#[tokio::test]
async fn probe_timeout_on_a_busy_server_blocks_nothing() {
    let fake = FakeVllm::start(FakeVllmConfig { hanging_uses: ["a".to_owned()].into(), ..FakeVllmConfig::default() });
    let mut config = fast_config(&fake);
    config.timeouts.probe = Duration::from_millis(900);
    let mut desired_adapters = desired(&["a", "b"], &[]);
    desired_adapters.file.ensure_exist[0].required = true;
    let mut testbed = LoopTestbed::start(config, desired_adapters);
    let ready = testbed.wait_until_ready().await;
    assert_eq!(adapter_state(&ready, "a"), Some(AdapterState::Loaded), "neither verified nor failed: {ready:#?}");
    let verified = testbed.wait_for_state("b", AdapterState::Verified).await;
    assert_eq!((adapter_state(&verified, "a"), verified.adapters[0].attempts), (Some(AdapterState::Loaded), 0));
    assert_eq!(verified.adapters[0].last_error.as_ref().unwrap().reason, "Timeout");
    assert_eq!(fake.max_concurrent_uses(), 1, "the previous probe must be abandoned first");
    fake.configure(|config| config.hanging_uses.clear());
    let verified = testbed.wait_for_state("a", AdapterState::Verified).await;
    assert!(verified.readiness.ready);
    assert_eq!(fake.count_requests("load a /adapters/a"), 1);
}

#[tokio::test]
async fn many_failing_adapters_do_not_delay_another() {
    let fake = FakeVllm::start(FakeVllmConfig { load_time: Duration::from_millis(10), ..FakeVllmConfig::default() });
    let bad: Vec<String> = (0..20).map(|number| format!("bad{number:02}")).collect();
    fake.configure(|config| {
        for name in &bad {
            config.failing.insert(name.clone(), (500, "Call to add_lora method failed: junk".to_owned()));
        }
    });
    let names: Vec<&str> = bad.iter().map(String::as_str).chain(["good"]).collect();
    let mut config = fast_config(&fake);
    config.policy.max_parallel = 1;
    let mut testbed = LoopTestbed::start(config, desired(&names, &[]));
    testbed.wait_until_ready().await;
    testbed.wait_for_state("good", AdapterState::Verified).await;
    // Each failing adapter was tried exactly once before it.
    let position = fake.requests().iter().position(|call| call.starts_with("load good"));
    assert_eq!(position, Some(20), "{:?}", fake.requests());
}
