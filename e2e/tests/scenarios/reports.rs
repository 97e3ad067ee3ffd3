//! What the operator tells beside the status of a Rollout: on every rewrite whether it is in force, and metrics. Neither
//! costs a request while nothing changes.

use crate::objects::{is_write, operator, rewrites, rollouts, until};
use anyhow::{Context as _, Result, ensure};
use kube::api::DeleteParams;
use rollora_api::{
    condition::Condition as Told,
    rewrite::RewriteGroup::{self, Current, Legacy},
    rollout::status::Phase,
};
use rollora_e2e::{
    bed::{Bed, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, on_a_cluster},
    seen::{Condition, phase, split},
};
use rollora_testbed::{
    control_plane::{AuditEvent, AuditLog},
    guide::{MODEL, POOL, REWRITE, V1, V2},
    http::{self, ListenAddress},
};
use serde_json::json;
use std::time::Duration;

/// The guide's model, and one that no Rollout knows.
const OTHER: &str = "other-model";
const METRICS: u16 = 8080;

async fn make(bed: &Bed<Cluster>, group: RewriteGroup, name: &str, pool: &str, models: &[&str]) -> Result<()> {
    let rules = models.iter().map(|model| {
        let exactly = json!({ "model": { "type": "Exact", "value": model } });
        json!({ "matches": [exactly], "targets": [{ "modelRewrite": V1, "weight": 100 }] })
    });
    let rules: Vec<_> = rules.collect();
    let object = json!({
        "apiVersion": group.api_version(), "kind": "InferenceModelRewrite", "metadata": { "name": name },
        "spec": { "poolRef": { "group": "inference.networking.k8s.io", "name": pool }, "rules": rules },
    });
    bed.place.apply(object).await
}

/// Waits until a rewrite says this: each condition as `Type=Status/Reason`, and words that its message has.
async fn says(bed: &Bed<Cluster>, group: RewriteGroup, name: &str, wanted: &[(&str, &str)]) -> Result<()> {
    let mut last = String::new();
    let look = async || {
        let found = rewrites(bed, group).get(name).await?;
        let told: Vec<Told> = serde_json::from_value(found.data["status"]["conditions"].clone()).unwrap_or_default();
        let says = |(what, words): &(&str, &str)| {
            let right = |it: &Told| format!("{}={:?}/{}", it.type_, it.status, it.reason) == *what;
            told.iter().any(|it| right(it) && it.message.contains(words))
        };
        last = format!("{told:?}");
        Ok(wanted.iter().all(says).then_some(()))
    };
    let ended = until(&format!("{name} says {wanted:?}"), look).await;
    ended.with_context(|| format!("it says {last}"))
}

/// How often the operator wrote the status of a rewrite.
fn told_so_often(bed: &Bed<Cluster>, audit: &AuditLog, name: &str) -> Result<usize> {
    let events = audit.events_of_user(&operator(bed))?;
    let of_status =
        events.iter().filter(|event| event.resource == "inferencemodelrewrites" && event.subresource == "status");
    Ok(of_status.filter(|event| is_write(event) && event.name == name).count())
}

async fn metrics(bed: &Bed<Cluster>) -> Result<String> {
    let container = bed.place.operators().into_iter().next().context("there is no operator")?;
    let address = ListenAddress::Tcp((container.address(), METRICS).into());
    let (status, text) = http::send_request(&address, http::request("GET", "/metrics", None)).await?;
    ensure!(status.is_success(), "{status}");
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What the operator asked of the API server that is neither a watch, nor about the Lease, nor which kinds are installed.
fn asked(bed: &Bed<Cluster>, audit: &AuditLog) -> Result<Vec<String>> {
    let events = audit.events_of_user(&operator(bed))?;
    let is_other = |event: &&AuditEvent| event.verb != "watch" && !matches!(event.resource.as_str(), "" | "leases");
    let others = events.iter().filter(is_other);
    Ok(others.map(|event| format!("{} {}/{} {}", event.verb, event.resource, event.subresource, event.name)).collect())
}

#[test]
fn every_rewrite_says_whether_it_is_in_force_and_every_rollout_has_its_metrics() {
    if !has_a_cluster("conditions of rewrites, and metrics") {
        return;
    }
    let parts = async || Ok(Parts::default());
    on_a_cluster(&Setup::open_at_half(Duration::from_millis(200)), parts, async |bed| {
        let audit = bed.place.plane().audit_log();
        bed.sees_baseline().await?;
        let in_force = ("Accepted=True/Accepted", "in force for");
        let alone = ("Conflicted=False/NoConflict", "every rule");
        says(bed, Current, REWRITE, &[in_force, alone]).await?;

        // Some that no Rollout governs.
        make(bed, Current, "of-nobody", POOL, &[OTHER]).await?;
        says(bed, Current, "of-nobody", &[in_force, alone]).await?;
        make(bed, Current, "of-no-pool", "forgotten-pool", &[OTHER]).await?;
        says(bed, Current, "of-no-pool", &[("Accepted=Unknown/Pending", "no InferencePool forgotten-pool")]).await?;
        make(bed, Current, "younger", POOL, &[OTHER, "own"]).await?;
        let shadow = ("Conflicted=True/ShadowedBy", "of-nobody, which goes first");
        says(bed, Current, "younger", &[("Accepted=True/Accepted", "in force for own"), shadow]).await?;
        make(bed, Legacy, "of-old", POOL, &[OTHER]).await?;
        says(bed, Legacy, "of-old", &[("Accepted=False/ShadowedBy", "group llm-d.ai")]).await?;
        rewrites(bed, Current).delete("of-nobody", &DeleteParams::default()).await?;
        let free = ("Accepted=True/Accepted", "in force for other-model, own");
        says(bed, Current, "younger", &[free, alone]).await?;
        let told = told_so_often(bed, &audit, "younger")?;
        ensure!(told == 2, "what changed twice was told {told} times");

        // Weights are no news, and nothing is asked while nothing changes.
        bed.list(V2).await?;
        bed.sees(split(MODEL, &[(V1, 50), (V2, 50)]).and(phase(Phase::Paused))).await?;
        let told = told_so_often(bed, &audit, REWRITE)?;
        ensure!(told == 1, "the conditions of {REWRITE} were written {told} times");
        let quiet = bed.place.plane().audit_log();
        bed.keeps_seeing(Duration::from_secs(2), phase(Phase::Paused)).await?;
        let text = metrics(bed).await?;
        let asked = asked(bed, &quiet)?;
        ensure!(asked.is_empty(), "asked while nothing changed: {asked:?}");

        let namespace = bed.place.namespace().to_owned();
        let of = format!("namespace=\"{namespace}\",name=\"{MODEL}\"");
        let info = format!("rollora_rollout_info{{{of},model=\"{MODEL}\",stable=\"{V1}\",desired=\"{V2}\"}} 1");
        let weight = format!("rollora_rollout_weight{{{of}}} 0.5");
        let residency = format!("rollora_rollout_resident_servers{{{of}}} 3");
        let paused = format!("rollora_rollout_phase{{{of},phase=\"Paused\"}} 1");
        for line in [&info, &weight, &residency, &paused] {
            ensure!(text.lines().any(|it| it == line), "no line {line}:\n{text}");
        }
        ensure!(value(&text, &format!("rollora_rollout_phase_seconds{{{of}}} "))? >= 2.0, "{text}");
        ensure!(value(&text, &format!("rollora_rollout_reconciles_total{{{of}}} "))? > 0.0, "{text}");

        bed.says(&["abort"]).await?;
        bed.sees(phase(Phase::RolledBack)).await?;
        let text = metrics(bed).await?;
        let once = "rollora_operator_intent_seconds_count{verb=\"abort\"} 1";
        ensure!(text.lines().any(|it| it == once), "no line {once}:\n{text}");
        rollouts(bed).delete(MODEL, &DeleteParams::default()).await?;
        bed.sees(Condition::new("the Rollout is gone", |seen| seen.status.is_err())).await?;
        let gone = async || Ok((!metrics(bed).await?.contains("rollora_rollout_info{")).then_some(()));
        until("the series of the Rollout are gone", gone).await?;
        let text = metrics(bed).await?;
        ensure!(!text.contains(&of), "something is left of it:\n{text}");
        Ok(())
    });
}

fn value(text: &str, series: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    value.with_context(|| format!("no series {series}:\n{text}"))?.parse().context("no number")
}
