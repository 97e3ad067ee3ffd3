//! A team has done the guide by hand until today: Rollora takes over what they made, where it stands.

use crate::objects::{Said, operator, other_writes, rewrite, rewrites, rewrites_are, shape, status, until};
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
    bed::{Bed, Setup},
    cluster::{Cluster, Parts},
    files::Entry,
    judge::Record,
    scenario::{has_a_cluster, on_a_cluster},
    seen::{cleaned_up, every_server_is_ready, loaded_everywhere, served_by, split, succeeded},
    traffic::Crowd,
};
use rollora_testbed::{
    guide::{ADAPTERS_CONFIG_MAP, MODEL, POOL, REWRITE, SOURCE, V1, V2},
    manifests::Manifests,
};
use serde_json::{Value, json};
use std::time::Duration;

const OPERATOR: &str = "rollora-operator";

/// Everything but the operator, which somebody installs later, and a rewrite with these rules.
fn by_hand(rules: Value) -> Parts {
    let change = move |manifests: &mut Manifests| {
        manifests.object_mut("Deployment", OPERATOR)?["spec"]["replicas"] = json!(0);
        let namespace = manifests.object_mut("ConfigMap", ADAPTERS_CONFIG_MAP)?["metadata"]["namespace"].clone();
        manifests.objects.push(json!({
            "apiVersion": RewriteGroup::Legacy.api_version(),
            "kind": "InferenceModelRewrite",
            "metadata": {
                "name": REWRITE, "namespace": namespace,
                "labels": { "team": "segments" }, "annotations": { "example.com/owner": "somebody" },
            },
            "spec": { "poolRef": { "group": "inference.networking.k8s.io", "name": POOL }, "rules": rules },
        }));
        Ok(())
    };
    Parts { change: Box::new(change), ..Parts::default() }
}

fn rule(models: &[&str], targets: &[(&str, i32)]) -> Value {
    let one = |model: &&str| json!({ "model": { "type": "Exact", "value": model } });
    let target = |(id, weight): &(&str, i32)| json!({ "modelRewrite": id, "weight": weight });
    json!({
        "matches": models.iter().map(one).collect::<Vec<_>>(),
        "targets": targets.iter().map(target).collect::<Vec<_>>(),
    })
}

/// Every version of the rewrite after this one, in order, but for those in which its status alone is another one.
async fn versions_since(bed: &Bed<Cluster>, first: &DynamicObject) -> Result<Vec<DynamicObject>> {
    let (from, last) = (first.resource_version().unwrap_or_default(), rewrite(bed, Legacy, REWRITE).await?);
    let parameters = WatchParams::default().fields(&format!("metadata.name={REWRITE}"));
    let mut changes = rewrites(bed, Legacy).watch(&parameters, &from).await?.boxed();
    let (mut versions, mut seen) = (vec![first.clone()], first.resource_version());
    while seen != last.resource_version() {
        let change = tokio::time::timeout(Duration::from_secs(10), changes.next()).await?;
        if let WatchEvent::Modified(object) = change.context("the watch ended")?? {
            seen = object.resource_version();
            if versions.last().map(shape) != Some(shape(&object)) {
                versions.push(object);
            }
        }
    }
    Ok(versions)
}

/// What was the people's own is as they made it.
fn keeps_what_is_theirs(object: &DynamicObject) -> Result<()> {
    let (label, annotation) = (object.labels().get("team"), object.annotations().get("example.com/owner"));
    ensure!(label.is_some_and(|team| team == "segments"), "{object:?}");
    ensure!(annotation.is_some_and(|owner| owner == "somebody"), "{object:?}");
    Ok(())
}

/// Which rules were in force, one after the other.
fn splits(record: &Record) -> Vec<Vec<(String, i32)>> {
    // Rollora counts anew what it takes over: that is no other split.
    let mut splits: Vec<_> = record.splits().into_iter().map(<[_]>::to_vec).collect();
    splits.dedup();
    splits
}

fn named(splits: &[&[(&str, i32)]]) -> Vec<Vec<(String, i32)>> {
    splits.iter().map(|split| split.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect()).collect()
}

#[test]
fn a_rewrite_made_by_hand_is_taken_over_and_the_guide_goes_on_from_there() {
    if !has_a_cluster("a rewrite made by hand is adopted") {
        return;
    }
    let another = rule(&["another-model"], &[("another-model-v3", 40), ("another-model-v4", 60)]);
    let rules = json!([another, rule(&[MODEL], &[(V1, 100)])]);
    let parts = async || Ok(by_hand(rules.clone()));
    on_a_cluster(&Setup::guide(Duration::from_millis(300)), parts, async |bed| {
        bed.sees_baseline().await?;
        let first = rewrite(bed, Legacy, REWRITE).await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));

        bed.place.scale(OPERATOR, 1);
        bed.sees(succeeded(V1)).await?;
        bed.list(V2).await?;
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;

        let record = bed.clients_saw_nothing_wrong().await?;
        let expected: [&[_]; 4] = [&[(V1, 100)], &[(V1, 90), (V2, 10)], &[(V1, 50), (V2, 50)], &[(V2, 100)]];
        ensure!(splits(&record) == named(&expected), "the rules in force were {:?}", splits(&record));
        rewrites_are(bed, &[], &[REWRITE]).await?;
        for version in versions_since(bed, &first).await? {
            keeps_what_is_theirs(&version)?;
            let rules = &version.data["spec"]["rules"];
            ensure!(rules[0] == another, "the rule of somebody else became {}", rules[0]);
            ensure!(rules.as_array().is_some_and(|rules| rules.len() == 2), "{rules}");
        }
        Ok(())
    });
}

#[test]
fn a_split_made_by_hand_is_taken_over_where_it_stands_when_somebody_says_which_is_stable() {
    if !has_a_cluster("a split made by hand is adopted") {
        return;
    }
    let (old, alias) = ([(V1, 90), (V2, 10)], "small-segment-alias");
    let rules = json!([rule(&[alias, MODEL], &old)]);
    let parts = async || Ok(by_hand(rules.clone()));
    let adapters = [V1, V2].map(|id| Entry::new(id, SOURCE)).to_vec();
    let setup = Setup { adapters, ..Setup::guide(Duration::from_millis(300)) };
    on_a_cluster(&setup, parts, async |bed| {
        let stands = || split(MODEL, &old);
        bed.sees(stands().and(loaded_everywhere(V1)).and(loaded_everywhere(V2)).and(every_server_is_ready())).await?;
        let first = rewrite(bed, Legacy, REWRITE).await?;
        let audit = bed.place.plane().audit_log();
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));

        // Nobody said which of the two is stable.
        bed.place.scale(OPERATOR, 1);
        let words = [STABLE_ANNOTATION, V1, V2, REWRITE, "write the annotation"];
        Said { condition: condition_type::STALLED, reason: reason::STABLE_UNKNOWN, words: &words }
            .is_told(bed, MODEL)
            .await?;
        bed.keeps_seeing(Duration::from_millis(500), stands()).await?;
        ensure!(shape(&rewrite(bed, Legacy, REWRITE).await?) == shape(&first), "it was written");
        // The sidecars are told that new ids wait for their admission, in the operator's own key.
        let mut written = other_writes(&audit.events_of_user(&operator(bed))?, &[MODEL]);
        written.retain(|write| write != &format!("update configmaps/ {ADAPTERS_CONFIG_MAP}"));
        ensure!(written.is_empty(), "it has written {written:?}");

        // Somebody does what the words say.
        let said = Patch::Merge(json!({ "metadata": { "annotations": { STABLE_ANNOTATION: V1 } } }));
        rewrites(bed, Legacy).patch(REWRITE, &PatchParams::default(), &said).await?;
        let stable = async || Ok(status(bed, MODEL).await?.revision.stable.filter(|id| id.as_str() == V1));
        until("v1 is known to be stable", stable).await?;
        bed.sees(split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        bed.sees(served_by(MODEL, V2).and(succeeded(V2))).await?;
        let mut rules = Vec::new();
        for version in versions_since(bed, &first).await? {
            keeps_what_is_theirs(&version)?;
            rules = version.data["spec"]["rules"].as_array().cloned().unwrap_or_default();
            let whole = rules.len() == 1 && rules[0] == rule(&[alias, MODEL], &old);
            let apart = rules.len() == 2 && rules.contains(&rule(&[alias], &old));
            ensure!(whole || apart, "the rule for {alias} became {rules:?}");
        }

        // The other name still has v1, until somebody moves it too.
        let words = [V1, REWRITE];
        let waits = async || {
            let conditions = status(bed, MODEL).await?.conditions;
            let condition = conditions.into_iter().find(|condition| condition.type_ == condition_type::CLEANED_UP);
            Ok(condition.filter(|condition| words.iter().all(|word| condition.message.contains(word))))
        };
        until("it is said who still needs v1", waits).await?;
        bed.keeps_seeing(Duration::from_millis(700), loaded_everywhere(V1)).await?;
        rules.retain(|it| it != &rule(&[alias], &old));
        rules.push(rule(&[alias], &[(V2, 100)]));
        let moved = Patch::Merge(json!({ "spec": { "rules": rules } }));
        rewrites(bed, Legacy).patch(REWRITE, &PatchParams::default(), &moved).await?;
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;

        let record = bed.clients_saw_nothing_wrong().await?;
        let expected: [&[_]; 3] = [&old, &[(V1, 50), (V2, 50)], &[(V2, 100)]];
        ensure!(splits(&record) == named(&expected), "the rules in force were {:?}", splits(&record));
        Ok(())
    });
}
