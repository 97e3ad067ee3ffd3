//! The rollout of the guide, and its starting points for other tests.

use crate::{
    driver::SimRun,
    world::{World, id},
};
use jiff::SignedDuration;
use rollora_api::rollout::{
    IntentKind,
    status::{Phase, RetirementState},
};

pub(crate) const ROLLOUT: &str = r#"
apiVersion: rollora.dev/v1alpha1
kind: Rollout
metadata: { name: small }
spec:
  model: small
  poolRef: { name: pool }
  adapter: { follow: { pattern: "small-v*" } }
  adaptersRef: { name: adapters }
  strategy:
    steps:
    - setWeight: 10
    - pause: { duration: 5s }
    - setWeight: 50
    - pause: {}
    - setWeight: 100
    progressDeadline: 60s
  cleanup: { delay: 2s, quietFor: 1s }
"#;

pub(crate) const V1: &str = "small-v1";
pub(crate) const V2: &str = "small-v2";

pub(crate) fn installed() -> SimRun {
    let mut run = SimRun::new(World::new(ROLLOUT, 3, &[V1]));
    run.run_until_phase(Phase::Succeeded);
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)]);
    run
}

pub(crate) fn at_half() -> SimRun {
    let mut run = installed();
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_until_phase(Phase::Paused);
    run
}

#[test]
fn guide_moves_traffic_to_v2_and_unloads_v1() {
    let mut run = at_half();
    run.run_for(SignedDuration::from_secs(30));
    assert_eq!(run.world().phase(), Phase::Paused, "an open pause waits for a person\n{}", run.log_text());
    run.world().set_intent(IntentKind::Promote);
    run.run_until_phase(Phase::Succeeded);
    run.run_until("v1 is unloaded", |world| world.loaded_count(&id(V1)) == 0);
    run.run_until("Gone", |world| world.status().retired.iter().all(|entry| entry.state == RetirementState::Gone));
    let world = run.world();
    assert_eq!(world.weight_history.len(), 4, "{:?}", world.weight_history);
    let file = world.adapters_file();
    assert_eq!(file.ensure_not_exist[0].id, id(V1));
    assert_eq!(file.ensure_exist[0].id, id(V2));
    assert!(world.adapters.user_text.contains("# comment of small-v1"));
    assert_eq!(world.status().revision.stable, Some(id(V2)));
}

#[test]
fn abort_at_half_restores_stable_in_one_write() {
    let mut run = at_half();
    run.world().set_intent(IntentKind::Abort);
    run.tick();
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
    run.run_until_phase(Phase::RolledBack);
    run.run_until("v2 is unloaded", |world| world.loaded_count(&id(V2)) == 0);
}
