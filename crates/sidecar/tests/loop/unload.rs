//! Tests of unloads: reported correctly, not before the grace is over, and never of unlisted adapters.

use crate::{
    LoopTestbed, adapter_state, desired,
    fake::{FakeVllm, FakeVllmConfig},
    fast_config, id,
};
use rollora_api::{adapters::AdapterEntry, sidecar_status::AdapterState};
use std::time::{Duration, Instant};

#[tokio::test]
async fn grace_is_counted_from_the_last_use() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut config = fast_config(&fake);
    let grace = Duration::from_millis(700);
    config.policy.unload_grace = grace;
    let mut testbed = LoopTestbed::start(config, desired(&["a"], &[]));
    testbed.wait_until_ready().await;
    fake.mark_used("a");
    testbed.set_desired(desired(&[], &["a"]));
    // Used again and again, each time before the grace of the last use is over.
    for _ in 0..6 {
        tokio::time::sleep(grace / 3).await;
        assert_eq!(fake.count_requests("unload a"), 0);
        fake.mark_used("a");
    }
    let last_use = Instant::now();
    testbed.wait_for("unloaded", |_| fake.count_requests("unload a") == 1).await;
    assert!(last_use.elapsed() >= grace, "unloaded {:?} after its last use", last_use.elapsed());
    testbed.wait_for_state("a", AdapterState::Gone).await;
}

#[tokio::test]
async fn failed_unload_is_reported_and_retried_until_it_succeeds() {
    for (code, message, reason) in
        [(500, "no", "ServerError"), (400, "odd", "Refused"), (409, "conflict", "UnexpectedResponse")]
    {
        let fake = FakeVllm::start(FakeVllmConfig::default());
        fake.configure(|config| drop(config.unload_failing.insert("a".to_owned(), (code, message.to_owned()))));
        let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &[]));
        testbed.wait_until_ready().await;
        testbed.set_desired(desired(&["b"], &["a"]));
        let status = testbed
            .wait_for("two attempts", |status| status.adapter(&id("a")).is_some_and(|adapter| adapter.attempts >= 2))
            .await;
        let adapter = status.adapter(&id("a")).unwrap();
        assert_eq!(adapter.state, AdapterState::Unloading);
        assert_eq!(adapter.last_error.as_ref().unwrap().reason, reason);
        assert!(adapter.next_try.is_some() && status.readiness.ready && fake.adapters().contains(&"a".to_owned()));
        fake.configure(|config| config.unload_failing.clear());
        let gone = testbed.wait_for_state("a", AdapterState::Gone).await;
        assert_eq!((gone.adapter(&id("a")).unwrap().last_error.clone(), fake.adapters()), (None, vec!["b".to_owned()]));
    }
}

#[tokio::test]
async fn adapter_unloaded_by_another_client_is_gone() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    testbed.wait_until_ready().await;
    // Before the call of the sidecar, which gets the answer 404.
    fake.unload_externally("a");
    testbed.set_desired(desired(&[], &["a"]));
    testbed.wait_for_state("a", AdapterState::Gone).await;
}

#[tokio::test]
async fn base_model_and_unlisted_adapters_are_never_touched() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["mine", "theirs"], &[]));
    testbed.wait_until_ready().await;
    testbed.set_desired(desired(&["base"], &["mine"]));
    testbed.wait_for_state("mine", AdapterState::Gone).await;
    testbed.set_desired(desired(&[], &["mine", "base"]));
    let status = testbed
        .wait_for("NameConflict of base", |status| adapter_state(status, "base") == Some(AdapterState::Failed))
        .await;
    assert_eq!(status.adapter(&id("base")).unwrap().last_error.as_ref().unwrap().reason, "NameConflict");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let count_loads =
        |name: &str| fake.requests().iter().filter(|call| call.contains(name) && call.contains("load")).count();
    assert_eq!((count_loads("base"), count_loads("theirs")), (0, 1));
    assert_eq!(fake.adapters(), ["theirs"]);
}

#[tokio::test]
async fn new_source_of_a_loaded_id_is_reported_without_a_call() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut testbed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    testbed.wait_until_ready().await;
    let mut changed = desired(&["a"], &[]);
    changed.file.ensure_exist[0] =
        AdapterEntry { source: "/other/a".to_owned(), ..changed.file.ensure_exist[0].clone() };
    testbed.set_desired(changed);
    let status = testbed.wait_for_state("a", AdapterState::SourceChanged).await;
    let problem = status.adapter(&id("a")).unwrap().last_error.clone().unwrap();
    assert!(problem.reason == "SourceChanged" && problem.message.contains("new id"), "{problem:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fake.requests(), ["load a /adapters/a", "use a"]);
    testbed.set_desired(desired(&["a"], &[]));
    testbed.wait_for_state("a", AdapterState::Verified).await;
}
