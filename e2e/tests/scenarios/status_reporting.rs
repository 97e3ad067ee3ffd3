//! What the operator reports besides a Rollout's status: conditions of every rewrite, and metrics. Neither costs a
//! request to the API server while nothing changes.

use crate::cluster_objects::{is_write, operator_user, rewrites_api, rollouts_api, wait_for};
use anyhow::{Context as _, Result, ensure};
use kube::api::DeleteParams;
use rollora_api::{
    condition::Condition,
    rewrite::RewriteGroup::{self, Current, Legacy},
    rollout::status::Phase,
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{WaitCondition, has_phase, traffic_split},
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
};
use rollora_testbed::{
    control_plane::{AuditEvent, AuditLog},
    guide::{MODEL, POOL, REWRITE, V1, V2},
    http::{self, ListenAddress},
};
use serde_json::json;
use std::time::Duration;

/// A model that no Rollout manages.
const OTHER_MODEL: &str = "other-model";
const METRICS_PORT: u16 = 8080;

async fn create_rewrite(
    harness: &Harness<ClusterEnvironment>,
    group: RewriteGroup,
    name: &str,
    pool: &str,
    models: &[&str],
) -> Result<()> {
    let rules = models.iter().map(|model| {
        let exactly = json!({ "model": { "type": "Exact", "value": model } });
        json!({ "matches": [exactly], "targets": [{ "modelRewrite": V1, "weight": 100 }] })
    });
    let rules: Vec<_> = rules.collect();
    let object = json!({
        "apiVersion": group.api_version(), "kind": "InferenceModelRewrite", "metadata": { "name": name },
        "spec": { "poolRef": { "group": "inference.networking.k8s.io", "name": pool }, "rules": rules },
    });
    harness.environment.apply(object).await
}

/// Waits until a rewrite has these conditions, each as `Type=Status/Reason` and words of its message.
async fn wait_for_conditions(
    harness: &Harness<ClusterEnvironment>,
    group: RewriteGroup,
    name: &str,
    expected: &[(&str, &str)],
) -> Result<()> {
    let mut last = String::new();
    let read = async || {
        let found = rewrites_api(harness, group).get(name).await?;
        let conditions: Vec<Condition> =
            serde_json::from_value(found.data["status"]["conditions"].clone()).unwrap_or_default();
        let has_condition = |(what, words): &(&str, &str)| {
            let right = |it: &Condition| format!("{}={:?}/{}", it.type_, it.status, it.reason) == *what;
            conditions.iter().any(|it| right(it) && it.message.contains(words))
        };
        last = format!("{conditions:?}");
        Ok(expected.iter().all(has_condition).then_some(()))
    };
    let ended = wait_for(&format!("{name} has {expected:?}"), read).await;
    ended.with_context(|| format!("the last conditions are {last}"))
}

/// Returns how often the operator wrote the status of a rewrite.
fn count_status_writes(harness: &Harness<ClusterEnvironment>, audit: &AuditLog, name: &str) -> Result<usize> {
    let events = audit.events_of_user(&operator_user(harness))?;
    let of_status =
        events.iter().filter(|event| event.resource == "inferencemodelrewrites" && event.subresource == "status");
    Ok(of_status.filter(|event| is_write(event) && event.name == name).count())
}

async fn fetch_metrics(harness: &Harness<ClusterEnvironment>) -> Result<String> {
    let container = harness.environment.operators().into_iter().next().context("there is no operator")?;
    let address = ListenAddress::Tcp((container.address(), METRICS_PORT).into());
    let (status, text) = http::send_request(&address, http::request("GET", "/metrics", None)).await?;
    ensure!(status.is_success(), "{status}");
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Returns the operator's requests without watches, the Lease, and API discovery.
fn operator_requests(harness: &Harness<ClusterEnvironment>, audit: &AuditLog) -> Result<Vec<String>> {
    let events = audit.events_of_user(&operator_user(harness))?;
    let is_other = |event: &&AuditEvent| event.verb != "watch" && !matches!(event.resource.as_str(), "" | "leases");
    let others = events.iter().filter(is_other);
    Ok(others.map(|event| format!("{} {}/{} {}", event.verb, event.resource, event.subresource, event.name)).collect())
}

#[test]
fn rewrites_have_conditions_and_rollouts_metrics() {
    if !cluster_tools_available("conditions of rewrites, and metrics") {
        return;
    }
    let options = async || Ok(ClusterOptions::default());
    run_on_cluster(&Setup::pause_at_half(Duration::from_millis(200)), options, async |harness| {
        let audit = harness.environment.control_plane().audit_log();
        harness.wait_for_baseline().await?;
        let accepted = ("Accepted=True/Accepted", "active for");
        let alone = ("Conflicted=False/NoConflict", "every rule");
        wait_for_conditions(harness, Current, REWRITE, &[accepted, alone]).await?;

        // Rewrites that no Rollout manages.
        create_rewrite(harness, Current, "of-no-rollout", POOL, &[OTHER_MODEL]).await?;
        wait_for_conditions(harness, Current, "of-no-rollout", &[accepted, alone]).await?;
        create_rewrite(harness, Current, "of-no-pool", "forgotten-pool", &[OTHER_MODEL]).await?;
        wait_for_conditions(
            harness,
            Current,
            "of-no-pool",
            &[("Accepted=Unknown/Pending", "no InferencePool forgotten-pool")],
        )
        .await?;
        create_rewrite(harness, Current, "younger", POOL, &[OTHER_MODEL, "own"]).await?;
        let shadow = ("Conflicted=True/ShadowedBy", "of-no-rollout, which takes precedence");
        wait_for_conditions(harness, Current, "younger", &[("Accepted=True/Accepted", "active for own"), shadow])
            .await?;
        create_rewrite(harness, Legacy, "of-old", POOL, &[OTHER_MODEL]).await?;
        wait_for_conditions(harness, Legacy, "of-old", &[("Accepted=False/ShadowedBy", "group llm-d.ai")]).await?;
        rewrites_api(harness, Current).delete("of-no-rollout", &DeleteParams::default()).await?;
        let free = ("Accepted=True/Accepted", "active for other-model, own");
        wait_for_conditions(harness, Current, "younger", &[free, alone]).await?;
        let writes = count_status_writes(harness, &audit, "younger")?;
        ensure!(writes == 2, "two changes were written {writes} times");

        // New weights do not change the conditions, and no request is sent while nothing changes.
        harness.list_adapter(V2).await?;
        harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused))).await?;
        let writes = count_status_writes(harness, &audit, REWRITE)?;
        ensure!(writes == 1, "the conditions of {REWRITE} were written {writes} times");
        let quiet = harness.environment.control_plane().audit_log();
        harness.assert_holds_for(Duration::from_secs(2), has_phase(Phase::Paused)).await?;
        let text = fetch_metrics(harness).await?;
        let requests = operator_requests(harness, &quiet)?;
        ensure!(requests.is_empty(), "requests while nothing changed: {requests:?}");

        let namespace = harness.environment.namespace().to_owned();
        let of = format!("namespace=\"{namespace}\",name=\"{MODEL}\"");
        let info = format!("rollora_rollout_info{{{of},model=\"{MODEL}\",stable=\"{V1}\",desired=\"{V2}\"}} 1");
        let weight = format!("rollora_rollout_weight{{{of}}} 0.5");
        let residency = format!("rollora_rollout_resident_servers{{{of}}} 3");
        let paused = format!("rollora_rollout_phase{{{of},phase=\"Paused\"}} 1");
        for line in [&info, &weight, &residency, &paused] {
            ensure!(text.lines().any(|it| it == line), "no line {line}:\n{text}");
        }
        ensure!(metric_value(&text, &format!("rollora_rollout_phase_seconds{{{of}}} "))? >= 2.0, "{text}");
        ensure!(metric_value(&text, &format!("rollora_rollout_reconciles_total{{{of}}} "))? > 0.0, "{text}");

        harness.cli_stdout(&["abort"]).await?;
        harness.wait_for(has_phase(Phase::RolledBack)).await?;
        let text = fetch_metrics(harness).await?;
        let once = "rollora_operator_intent_seconds_count{verb=\"abort\"} 1";
        ensure!(text.lines().any(|it| it == once), "no line {once}:\n{text}");
        rollouts_api(harness).delete(MODEL, &DeleteParams::default()).await?;
        harness.wait_for(WaitCondition::new("the Rollout is gone", |snapshot| snapshot.status.is_err())).await?;
        let gone = async || Ok((!fetch_metrics(harness).await?.contains("rollora_rollout_info{")).then_some(()));
        wait_for("the series of the Rollout are gone", gone).await?;
        let text = fetch_metrics(harness).await?;
        ensure!(!text.contains(&of), "a series of the Rollout is left:\n{text}");
        Ok(())
    });
}

fn metric_value(text: &str, series: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    value.with_context(|| format!("no series {series}:\n{text}"))?.parse().context("no number")
}
