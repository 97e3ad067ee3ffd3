//! A tool keeps the adapters ConfigMap as a repository says: its next sync would undo an edit, so the edit is left to a
//! person.

use crate::objects::{Said, status};
use anyhow::{Context as _, Result, ensure};
use rollora_api::{
    condition::{condition_type, reason},
    rollout::status::RetirementState,
};
use rollora_e2e::{
    bed::{Place as _, Setup},
    cluster::Parts,
    scenario::{has_a_cluster, on_a_cluster},
    seen::{Condition, Seen, cleaned_up, loaded_everywhere, served_by, succeeded},
    traffic::Crowd,
};
use rollora_testbed::{
    guide::{ADAPTERS_CONFIG_MAP, MODEL, V1, V2},
    manifests::Manifests,
};
use serde_json::json;
use std::time::Duration;

/// Argo CD's mark, as its default tracking method writes it.
fn with_the_mark_of_argo_cd(objects: &mut Manifests) -> Result<()> {
    let mark = json!("segments:/ConfigMap:llm/vllm-adapters");
    objects.object_mut("ConfigMap", ADAPTERS_CONFIG_MAP)?["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] =
        mark;
    Ok(())
}

/// The file still says this, and v1 is where it was.
fn untouched(file: String) -> Condition {
    let same = Condition::new("the adapters file is as it was", move |seen: &Seen| seen.adapters_file == file);
    same.and(loaded_everywhere(V1))
}

#[test]
fn the_edit_of_a_file_that_argo_cd_keeps_is_suggested_and_left_to_a_person() {
    if !has_a_cluster("Argo CD keeps the adapters ConfigMap") {
        return;
    }
    let parts = async || Ok(Parts { change: Box::new(with_the_mark_of_argo_cd), ..Parts::default() });
    on_a_cluster(&Setup::guide(Duration::from_millis(200)), parts, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        bed.list(V2).await?;
        let file = bed.place.adapters_file().await?;
        bed.sees(served_by(MODEL, V2).and(succeeded(V2))).await?;

        let edit = format!("move the entry of {V1} from ensureExist to ensureNotExist");
        let words = ["Argo CD owns the adapters file", edit.as_str()];
        Said { condition: condition_type::CLEANED_UP, reason: reason::SUGGESTED, words: &words }
            .is_told(bed, MODEL)
            .await?;
        ensure!(retirement(&status(bed, MODEL).await?)? == RetirementState::Suggested, "it is not suggested");
        bed.keeps_seeing(Duration::from_secs(1), untouched(file)).await?;

        // The person does it, in the repository, and Argo CD applies it.
        bed.unlist(V1).await?;
        let file = bed.place.adapters_file().await?;
        bed.sees(cleaned_up(V1).and(succeeded(V2))).await?;
        ensure!(retirement(&status(bed, MODEL).await?)? == RetirementState::Gone, "it is not said to be gone");
        ensure!(bed.place.adapters_file().await? == file, "the file is not as the person left it");
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

/// How far the retirement of v1 is.
fn retirement(status: &rollora_api::rollout::RolloutStatus) -> Result<RetirementState> {
    let entry = status.retired.iter().find(|entry| entry.id.as_str() == V1);
    Ok(entry.with_context(|| format!("{V1} is not retired: {:?}", status.retired))?.state)
}
