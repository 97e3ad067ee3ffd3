//! Unloads: truthful, late enough, and never of what is not ours.

use crate::{
    LoopTestbed, adapter_state, desired,
    fake::{FakeVllm, FakeVllmConfig},
    fast_config, id,
};
use rollora_api::{adapters::AdapterEntry, sidecar_status::AdapterState};
use std::time::{Duration, Instant};

#[tokio::test]
async fn the_grace_is_counted_from_the_last_use_whatever_was_before() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut config = fast_config(&fake);
    let grace = Duration::from_millis(700);
    config.policy.unload_grace = grace;
    let mut bed = LoopTestbed::start(config, desired(&["a"], &[]));
    bed.wait_until_ready().await;
    fake.mark_used("a");
    bed.set_desired(desired(&[], &["a"]));
    // Used again and again, each time before the grace of the last use is over.
    for _ in 0..6 {
        tokio::time::sleep(grace / 3).await;
        assert_eq!(fake.count_requests("unload a"), 0);
        fake.mark_used("a");
    }
    let last = Instant::now();
    bed.wait_for("unloaded", |_| fake.count_requests("unload a") == 1).await;
    assert!(last.elapsed() >= grace, "unloaded {:?} after its last use", last.elapsed());
    bed.wait_for_state("a", AdapterState::Gone).await;
}

#[tokio::test]
async fn an_unload_that_fails_is_shown_and_tried_again_until_it_is_done() {
    for (status, words, reason) in
        [(500, "no", "ServerError"), (400, "odd", "Refused"), (409, "conflict", "UnexpectedAnswer")]
    {
        let fake = FakeVllm::start(FakeVllmConfig::default());
        fake.configure(|knobs| drop(knobs.unload_failing.insert("a".to_owned(), (status, words.to_owned()))));
        let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a", "b"], &[]));
        bed.wait_until_ready().await;
        bed.set_desired(desired(&["b"], &["a"]));
        let shown = bed
            .wait_for("two attempts", |status| status.adapter(&id("a")).is_some_and(|adapter| adapter.attempts >= 2))
            .await;
        let adapter = shown.adapter(&id("a")).unwrap();
        assert_eq!(adapter.state, AdapterState::Unloading);
        assert_eq!(adapter.last_error.as_ref().unwrap().reason, reason);
        assert!(adapter.next_try.is_some() && shown.readiness.ready && fake.adapters().contains(&"a".to_owned()));
        fake.configure(|knobs| knobs.unload_failing.clear());
        let gone = bed.wait_for_state("a", AdapterState::Gone).await;
        assert_eq!((gone.adapter(&id("a")).unwrap().last_error.clone(), fake.adapters()), (None, vec!["b".to_owned()]));
    }
}

#[tokio::test]
async fn what_somebody_else_has_unloaded_is_gone() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    bed.wait_until_ready().await;
    // In the moment between the decision and the call: the answer is a 404.
    fake.unload_externally("a");
    bed.set_desired(desired(&[], &["a"]));
    bed.wait_for_state("a", AdapterState::Gone).await;
}

#[tokio::test]
async fn a_base_model_and_what_nobody_lists_are_never_touched() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["mine", "theirs"], &[]));
    bed.wait_until_ready().await;
    bed.set_desired(desired(&["base"], &["mine"]));
    bed.wait_for_state("mine", AdapterState::Gone).await;
    bed.set_desired(desired(&[], &["mine", "base"]));
    let status = bed.wait_for("named", |status| adapter_state(status, "base") == Some(AdapterState::Failed)).await;
    assert_eq!(status.adapter(&id("base")).unwrap().last_error.as_ref().unwrap().reason, "NameConflict");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let about = |name: &str| fake.requests().iter().filter(|call| call.contains(name) && call.contains("load")).count();
    assert_eq!((about("base"), about("theirs")), (0, 1));
    assert_eq!(fake.adapters(), ["theirs"]);
}

#[tokio::test]
async fn another_source_under_a_loaded_id_changes_nothing_and_says_to_use_another_id() {
    let fake = FakeVllm::start(FakeVllmConfig::default());
    let mut bed = LoopTestbed::start(fast_config(&fake), desired(&["a"], &[]));
    bed.wait_until_ready().await;
    let mut changed = desired(&["a"], &[]);
    changed.file.ensure_exist[0] =
        AdapterEntry { source: "/other/a".to_owned(), ..changed.file.ensure_exist[0].clone() };
    bed.set_desired(changed);
    let status = bed.wait_for_state("a", AdapterState::SourceChanged).await;
    let problem = status.adapter(&id("a")).unwrap().last_error.clone().unwrap();
    assert!(problem.reason == "SourceChanged" && problem.message.contains("new id"), "{problem:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fake.requests(), ["load a /adapters/a", "use a"]);
    bed.set_desired(desired(&["a"], &[]));
    bed.wait_for_state("a", AdapterState::Verified).await;
}
