//! Servers without slots for both versions: the status reports that, and the rollout continues.

use anyhow::{Result, ensure};
use rollora_api::{
    condition::{ConditionStatus, condition_type::ADAPTERS_FIT, reason},
    rollout::status::Phase,
};
use rollora_e2e::{
    conditions::{WaitCondition, cleaned_up, has_phase, succeeded, traffic_split},
    harness::{Environment, Harness, Setup},
    scenario::run_on,
    traffic::LoadProfile,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::in_both_environments!(too_few_slots_are_reported_and_do_not_block);

fn too_few_slots_are_reported_and_do_not_block<E: Environment>() {
    let setup = Setup::pause_at_half(Duration::from_millis(200)).with_flags(&["--max-loras", "1"]);
    run_on::<E>(&setup, check_insufficient_slots);
}

async fn check_insufficient_slots<E: Environment>(harness: &mut Harness<E>) -> Result<()> {
    // vLLM reports its slots once an adapter has served a request; no poll happens for that alone.
    harness.wait_for_baseline().await?;
    harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
    harness.list_adapter(V2).await?;
    let half = traffic_split(MODEL, &[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused));
    harness.wait_for(half.and(adapters_fit(ConditionStatus::False, reason::TOO_FEW_SLOTS))).await?;
    let explained = harness.cli_stdout(&["explain"]).await?;
    for words in ["max_loras is 1, and 2 adapters are in use", V1, V2, "--max-loras 2"] {
        ensure!(explained.contains(words), "{words} is not in:\n{explained}");
    }
    harness.cli_stdout(&["promote"]).await?;
    harness.wait_for(succeeded(V2).and(cleaned_up(V1)).and(adapters_fit(ConditionStatus::True, reason::FITS))).await?;
    harness.stop_clients_and_verify().await.map(drop)
}

fn adapters_fit(status: ConditionStatus, reason: &'static str) -> WaitCondition {
    WaitCondition::new(format!("{ADAPTERS_FIT} is {status:?} because of {reason}"), move |snapshot| {
        let conditions = snapshot.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let condition = conditions.iter().find(|condition| condition.type_ == ADAPTERS_FIT);
        condition.is_some_and(|condition| condition.status == status && condition.reason == reason)
    })
}
