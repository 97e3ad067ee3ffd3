//! A GitOps tool owns the adapters ConfigMap: its next sync would revert an edit, so the operator suggests the edit to
//! a person.

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

/// Adds Argo CD's tracking annotation, in its default format.
fn add_argo_cd_tracking_id(objects: &mut Manifests) -> Result<()> {
    let tracking_id = json!("segments:/ConfigMap:llm/vllm-adapters");
    objects.object_mut("ConfigMap", ADAPTERS_CONFIG_MAP)?["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] =
        tracking_id;
    Ok(())
}

/// Holds if the file still has this text and every server still has v1.
fn adapters_file_unchanged(file: String) -> WaitCondition {
    let same = WaitCondition::new("the adapters file is as it was", move |snapshot: &SystemSnapshot| {
        snapshot.adapters_file == file
    });
    same.and(loaded_everywhere(V1))
}

#[test]
fn edit_of_an_argo_cd_owned_file_is_only_suggested() {
    if !cluster_tools_available("Argo CD keeps the adapters ConfigMap") {
        return;
    }
    let options =
        async || Ok(ClusterOptions { patch_manifests: Box::new(add_argo_cd_tracking_id), ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(200)), options, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        harness.list_adapter(V2).await?;
        let file = harness.environment.adapters_yaml().await?;
        harness.wait_for(served_by(MODEL, V2).and(succeeded(V2))).await?;

        let edit = format!("move the entry of {V1} from ensureExist to ensureNotExist");
        let words = ["Argo CD owns the adapters file", edit.as_str()];
        ExpectedCondition { condition: condition_type::CLEANED_UP, reason: reason::SUGGESTED, expected_words: &words }
            .wait_until_reported(harness, MODEL)
            .await?;
        ensure!(
            retirement_state(&rollout_status(harness, MODEL).await?)? == RetirementState::Suggested,
            "the retirement is not in the state Suggested"
        );
        harness.assert_holds_for(Duration::from_secs(1), adapters_file_unchanged(file)).await?;

        // A person commits the edit, and Argo CD applies it.
        harness.unlist_adapter(V1).await?;
        let file = harness.environment.adapters_yaml().await?;
        harness.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
        ensure!(
            retirement_state(&rollout_status(harness, MODEL).await?)? == RetirementState::Gone,
            "the retirement is not in the state Gone"
        );
        ensure!(harness.environment.adapters_yaml().await? == file, "the file differs from the person's edit");
        harness.stop_clients_and_verify().await.map(drop)
    });
}

/// Returns the retirement state of v1.
fn retirement_state(status: &rollora_api::rollout::RolloutStatus) -> Result<RetirementState> {
    let entry = status.retired.iter().find(|entry| entry.id.as_str() == V1);
    Ok(entry.with_context(|| format!("{V1} is not retired: {:?}", status.retired))?.state)
}
