//! Servers that cannot hold both versions at once: that is said, and hinders nothing.

use anyhow::{Result, ensure};
use rollora_api::{
    condition::{ConditionStatus, condition_type::ADAPTERS_FIT, reason},
    rollout::status::Phase,
};
use rollora_e2e::{
    bed::{Bed, Place, Setup},
    scenario::on,
    seen::{Condition, cleaned_up, phase, split, succeeded},
    traffic::Crowd,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::on_both_beds!(two_versions_in_the_room_of_one_are_told_and_hinder_nothing);

fn two_versions_in_the_room_of_one_are_told_and_hinder_nothing<P: Place>() {
    let setup = Setup::open_at_half(Duration::from_millis(200)).with_flags(&["--max-loras", "1"]);
    on::<P>(&setup, too_small);
}

async fn too_small<P: Place>(bed: &mut Bed<P>) -> Result<()> {
    // What vLLM has room for it tells when an adapter has answered; nobody asks again for that alone.
    bed.sees_baseline().await?;
    bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
    bed.list(V2).await?;
    let half = split(MODEL, &[(V1, 50), (V2, 50)]).and(phase(Phase::Paused));
    bed.sees(half.and(fits(ConditionStatus::False, reason::TOO_FEW_SLOTS))).await?;
    let explained = bed.says(&["explain"]).await?;
    for words in ["max_loras is 1, and 2 adapters are in use", V1, V2, "--max-loras 2"] {
        ensure!(explained.contains(words), "{words} is not in:\n{explained}");
    }
    bed.says(&["promote"]).await?;
    bed.sees(succeeded(V2).and(cleaned_up(V1)).and(fits(ConditionStatus::True, reason::FITS))).await?;
    bed.clients_saw_nothing_wrong().await.map(drop)
}

fn fits(status: ConditionStatus, reason: &'static str) -> Condition {
    Condition::new(format!("{ADAPTERS_FIT} is {status:?} because of {reason}"), move |seen| {
        let conditions = seen.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let said = conditions.iter().find(|condition| condition.type_ == ADAPTERS_FIT);
        said.is_some_and(|said| said.status == status && said.reason == reason)
    })
}
