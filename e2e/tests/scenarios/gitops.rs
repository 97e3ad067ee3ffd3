//! A tool keeps the adapters ConfigMap as a repository says: its next sync would undo an edit, so the edit is left to a
//! person.

use crate::cluster_objects::{ExpectedCondition, rollout_status};
use anyhow::{Context as _, Result, ensure};
use rollora_api::{
    condition::{condition_type, reason},
    rollout::status::RetirementState,
};
use rollora_e2e::{
    cluster::ClusterOptions,
    conditions::{SystemSnapshot, WaitCondition, cleaned_up, loaded_everywhere, served_by, succeeded},
    harness::{Environment as _, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::{
    guide::{ADAPTERS_CONFIG_MAP, MODEL, V1, V2},
    manifests::Manifests,
};
use serde_json::json;
use std::time::Duration;

/// Argo CD's mark, as its default tracking method writes it.
fn add_argo_cd_tracking_id(objects: &mut Manifests) -> Result<()> {
    let mark = json!("segments:/ConfigMap:llm/vllm-adapters");
    objects.object_mut("ConfigMap", ADAPTERS_CONFIG_MAP)?["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] =
        mark;
    Ok(())
}

/// The file still says this, and v1 is where it was.
fn adapters_file_unchanged(file: String) -> WaitCondition {
    let same =
        WaitCondition::new("the adapters file is as it was", move |seen: &SystemSnapshot| seen.adapters_file == file);
    same.and(loaded_everywhere(V1))
}

#[test]
fn the_edit_of_a_file_that_argo_cd_keeps_is_suggested_and_left_to_a_person() {
    if !cluster_tools_available("Argo CD keeps the adapters ConfigMap") {
        return;
    }
    let parts =
        async || Ok(ClusterOptions { patch_manifests: Box::new(add_argo_cd_tracking_id), ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(200)), parts, async |bed| {
        bed.wait_for_baseline().await?;
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        bed.list_adapter(V2).await?;
        let file = bed.environment.adapters_yaml().await?;
        bed.wait_for(served_by(MODEL, V2).and(succeeded(V2))).await?;

        let edit = format!("move the entry of {V1} from ensureExist to ensureNotExist");
        let words = ["Argo CD owns the adapters file", edit.as_str()];
        ExpectedCondition { condition: condition_type::CLEANED_UP, reason: reason::SUGGESTED, expected_words: &words }
            .wait_until_reported(bed, MODEL)
            .await?;
        ensure!(
            retirement_state(&rollout_status(bed, MODEL).await?)? == RetirementState::Suggested,
            "it is not suggested"
        );
        bed.assert_holds_for(Duration::from_secs(1), adapters_file_unchanged(file)).await?;

        // The person does it, in the repository, and Argo CD applies it.
        bed.unlist_adapter(V1).await?;
        let file = bed.environment.adapters_yaml().await?;
        bed.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
        ensure!(
            retirement_state(&rollout_status(bed, MODEL).await?)? == RetirementState::Gone,
            "it is not said to be gone"
        );
        ensure!(bed.environment.adapters_yaml().await? == file, "the file is not as the person left it");
        bed.stop_clients_and_verify().await.map(drop)
    });
}

/// How far the retirement of v1 is.
fn retirement_state(status: &rollora_api::rollout::RolloutStatus) -> Result<RetirementState> {
    let entry = status.retired.iter().find(|entry| entry.id.as_str() == V1);
    Ok(entry.with_context(|| format!("{V1} is not retired: {:?}", status.retired))?.state)
}
