//! A team has performed the guide manually so far: Rollora adopts the existing rewrite and continues from its split.

use crate::cluster_objects::{
    ExpectedCondition, check_rewrites, get_rewrite, object_revision, operator_user, other_writes, rewrites_api,
    rollout_status, wait_for,
};
use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use kube::{
    ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, WatchEvent, WatchParams},
};
use rollora_api::{
    condition::{condition_type, reason},
    names::STABLE_ANNOTATION,
    rewrite::RewriteGroup::{self, Legacy},
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{all_servers_ready, cleaned_up, loaded_everywhere, served_by, succeeded, traffic_split},
    files::ListedAdapter,
    harness::{Harness, Setup},
    oracle::TrafficRecord,
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::{
    guide::{ADAPTERS_CONFIG_MAP, MODEL, POOL, REWRITE, SOURCE, V1, V2},
    manifests::Manifests,
};
use serde_json::{Value, json};
use std::time::Duration;

const OPERATOR: &str = "rollora-operator";

/// Returns a cluster with a rewrite with these rules and without the operator, which is installed later.
fn options_with_manual_rewrite(rules: Value) -> ClusterOptions {
    let change = move |manifests: &mut Manifests| {
        manifests.object_mut("Deployment", OPERATOR)?["spec"]["replicas"] = json!(0);
        let namespace = manifests.object_mut("ConfigMap", ADAPTERS_CONFIG_MAP)?["metadata"]["namespace"].clone();
        manifests.objects.push(json!({
            "apiVersion": RewriteGroup::Legacy.api_version(),
            "kind": "InferenceModelRewrite",
            "metadata": {
                "name": REWRITE, "namespace": namespace,
                "labels": { "team": "segments" }, "annotations": { "example.com/owner": "segments-team" },
            },
            "spec": { "poolRef": { "group": "inference.networking.k8s.io", "name": POOL }, "rules": rules },
        }));
        Ok(())
    };
    ClusterOptions { patch_manifests: Box::new(change), ..ClusterOptions::default() }
}

fn rule(models: &[&str], targets: &[(&str, i32)]) -> Value {
    let one = |model: &&str| json!({ "model": { "type": "Exact", "value": model } });
    let target = |(id, weight): &(&str, i32)| json!({ "modelRewrite": id, "weight": weight });
    json!({
        "matches": models.iter().map(one).collect::<Vec<_>>(),
        "targets": targets.iter().map(target).collect::<Vec<_>>(),
    })
}

/// Returns every version of the rewrite since `first`, in order, without those that differ in the status alone.
async fn versions_since(harness: &Harness<ClusterEnvironment>, first: &DynamicObject) -> Result<Vec<DynamicObject>> {
    let (from, last) = (first.resource_version().unwrap_or_default(), get_rewrite(harness, Legacy, REWRITE).await?);
    let parameters = WatchParams::default().fields(&format!("metadata.name={REWRITE}"));
    let mut changes = rewrites_api(harness, Legacy).watch(&parameters, &from).await?.boxed();
    let (mut versions, mut last_seen) = (vec![first.clone()], first.resource_version());
    while last_seen != last.resource_version() {
        let change = tokio::time::timeout(Duration::from_secs(10), changes.next()).await?;
        if let WatchEvent::Modified(object) = change.context("the watch ended")?? {
            last_seen = object.resource_version();
            if versions.last().map(object_revision) != Some(object_revision(&object)) {
                versions.push(object);
            }
        }
    }
    Ok(versions)
}

/// Fails unless the user's own label and annotation are unchanged.
fn check_foreign_metadata(object: &DynamicObject) -> Result<()> {
    let (label, annotation) = (object.labels().get("team"), object.annotations().get("example.com/owner"));
    ensure!(label.is_some_and(|team| team == "segments"), "{object:?}");
    ensure!(annotation.is_some_and(|owner| owner == "segments-team"), "{object:?}");
    Ok(())
}

/// Returns the active splits, without repetitions.
fn distinct_splits(record: &TrafficRecord) -> Vec<Vec<(String, i32)>> {
    // Adoption starts a new sequence, which is not another split.
    let mut splits: Vec<_> = record.splits().into_iter().map(<[_]>::to_vec).collect();
    splits.dedup();
    splits
}

fn owned_splits(splits: &[&[(&str, i32)]]) -> Vec<Vec<(String, i32)>> {
    splits.iter().map(|split| split.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect()).collect()
}

#[test]
fn manual_rewrite_is_adopted_and_rolled_out() {
    if !cluster_tools_available("a rewrite made by hand is adopted") {
        return;
    }
    let another = rule(&["another-model"], &[("another-model-v3", 40), ("another-model-v4", 60)]);
    let rules = json!([another, rule(&[MODEL], &[(V1, 100)])]);
    let options = async || Ok(options_with_manual_rewrite(rules.clone()));
    run_on_cluster(&Setup::guide(Duration::from_millis(300)), options, async |harness| {
        harness.wait_for_baseline().await?;
        let first = get_rewrite(harness, Legacy, REWRITE).await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));

        harness.environment.scale(OPERATOR, 1);
        harness.wait_for(succeeded(V1)).await?;
        harness.list_adapter(V2).await?;
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;

        let record = harness.stop_clients_and_verify().await?;
        let expected: [&[_]; 4] = [&[(V1, 100)], &[(V1, 90), (V2, 10)], &[(V1, 50), (V2, 50)], &[(V2, 100)]];
        ensure!(
            distinct_splits(&record) == owned_splits(&expected),
            "the active rules were {:?}",
            distinct_splits(&record)
        );
        check_rewrites(harness, &[], &[REWRITE]).await?;
        for version in versions_since(harness, &first).await? {
            check_foreign_metadata(&version)?;
            let rules = &version.data["spec"]["rules"];
            ensure!(rules[0] == another, "the other team's rule became {}", rules[0]);
            ensure!(rules.as_array().is_some_and(|rules| rules.len() == 2), "{rules}");
        }
        Ok(())
    });
}

#[test]
fn manual_split_is_adopted_once_stable_is_annotated() {
    if !cluster_tools_available("a split made by hand is adopted") {
        return;
    }
    let (old, alias) = ([(V1, 90), (V2, 10)], "small-segment-alias");
    let rules = json!([rule(&[alias, MODEL], &old)]);
    let options = async || Ok(options_with_manual_rewrite(rules.clone()));
    let adapters = [V1, V2].map(|id| ListedAdapter::new(id, SOURCE)).to_vec();
    let setup = Setup { adapters, ..Setup::guide(Duration::from_millis(300)) };
    run_on_cluster(&setup, options, async |harness| {
        let manual_split = || traffic_split(MODEL, &old);
        harness
            .wait_for(manual_split().and(loaded_everywhere(V1)).and(loaded_everywhere(V2)).and(all_servers_ready()))
            .await?;
        let first = get_rewrite(harness, Legacy, REWRITE).await?;
        let audit = harness.environment.control_plane().audit_log();
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));

        // No annotation names the stable version yet.
        harness.environment.scale(OPERATOR, 1);
        let words = [STABLE_ANNOTATION, V1, V2, REWRITE, "write the annotation"];
        ExpectedCondition {
            condition: condition_type::STALLED,
            reason: reason::STABLE_UNKNOWN,
            expected_words: &words,
        }
        .wait_until_reported(harness, MODEL)
        .await?;
        harness.assert_holds_for(Duration::from_millis(500), manual_split()).await?;
        ensure!(
            object_revision(&get_rewrite(harness, Legacy, REWRITE).await?) == object_revision(&first),
            "it was written"
        );
        // The operator writes its directives: sidecars must hold new ids until they are admitted.
        let mut written = other_writes(&audit.events_of_user(&operator_user(harness))?, &[MODEL]);
        written.retain(|write| write != &format!("update configmaps/ {ADAPTERS_CONFIG_MAP}"));
        ensure!(written.is_empty(), "unexpected writes: {written:?}");

        // A person follows the message.
        let annotation = Patch::Merge(json!({ "metadata": { "annotations": { STABLE_ANNOTATION: V1 } } }));
        rewrites_api(harness, Legacy).patch(REWRITE, &PatchParams::default(), &annotation).await?;
        let stable = async || Ok(rollout_status(harness, MODEL).await?.revision.stable.filter(|id| id.as_str() == V1));
        wait_for("v1 is known to be stable", stable).await?;
        harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        harness.wait_for(served_by(MODEL, V2).and(succeeded(V2))).await?;
        let mut rules = Vec::new();
        for version in versions_since(harness, &first).await? {
            check_foreign_metadata(&version)?;
            rules = version.data["spec"]["rules"].as_array().cloned().unwrap_or_default();
            let whole = rules.len() == 1 && rules[0] == rule(&[alias, MODEL], &old);
            let split_off = rules.len() == 2 && rules.contains(&rule(&[alias], &old));
            ensure!(whole || split_off, "the rule for {alias} became {rules:?}");
        }

        // The alias still routes to v1, until a person changes its rule too.
        let words = [V1, REWRITE];
        let waits = async || {
            let conditions = rollout_status(harness, MODEL).await?.conditions;
            let condition = conditions.into_iter().find(|condition| condition.type_ == condition_type::CLEANED_UP);
            Ok(condition.filter(|condition| words.iter().all(|word| condition.message.contains(word))))
        };
        wait_for("CleanedUp names the rewrite that still needs v1", waits).await?;
        harness.assert_holds_for(Duration::from_millis(700), loaded_everywhere(V1)).await?;
        rules.retain(|it| it != &rule(&[alias], &old));
        rules.push(rule(&[alias], &[(V2, 100)]));
        let moved = Patch::Merge(json!({ "spec": { "rules": rules } }));
        rewrites_api(harness, Legacy).patch(REWRITE, &PatchParams::default(), &moved).await?;
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;

        let record = harness.stop_clients_and_verify().await?;
        let expected: [&[_]; 3] = [&old, &[(V1, 50), (V2, 50)], &[(V2, 100)]];
        ensure!(
            distinct_splits(&record) == owned_splits(&expected),
            "the active rules were {:?}",
            distinct_splits(&record)
        );
        Ok(())
    });
}
