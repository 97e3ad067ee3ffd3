//! Upstream's endpoint picker: in place of ext-proc it executes the rewrites, and behind it it executes them again.
//!
//! The picker puts the name that a client sent into the answer, so that `.model` says nothing there. What counts is
//! what the servers were asked; the sidecars' proofs of residency, which are of one token, aside.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use rollora_api::{
    condition::{ConditionStatus, condition_type, reason},
    rollout::{spec::RouterKind, status::Phase},
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{
        SystemSnapshot, WaitCondition, all_servers_ready, cleaned_up, has_phase, loaded_everywhere, served_by,
        succeeded, traffic_split, unloaded_everywhere,
    },
    files::{RolloutManifest, RolloutStep},
    harness::{Environment as _, Harness, Setup},
    oracle::SplitSample,
    scenario::run_on_cluster,
    traffic::{ChatRequest, LoadProfile, RequestOutcome, ResponseMode, send_once},
};
use rollora_testbed::{
    endpoint_picker::{EndpointPicker, PickerPosition},
    guide::{MODEL, POOL, REWRITE, V1, V2},
    http,
    manifests::push_value,
    tools::{self, CONTROL_PLANE, ENDPOINT_PICKER, ENVOY},
};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

const LEGACY_GROUP: &str = "inference.networking.x-k8s.io";
const GENERIC_REWRITE: &str = "everything";

fn has_endpoint_picker(what: &str) -> bool {
    tools::all_available(&[CONTROL_PLANE, ENVOY, ENDPOINT_PICKER], what)
}

/// Clients that no proof of residency can be taken for.
fn client_load() -> LoadProfile {
    let whole = |tokens| ChatRequest::new(MODEL, ResponseMode::Json, tokens);
    let connections = vec![whole(2), whole(2), whole(4), ChatRequest::new(MODEL, ResponseMode::Sse, 6)];
    LoadProfile { connections, interval: Duration::from_millis(20) }
}

/// What all servers were asked by clients, by adapter.
async fn client_requests_by_adapter(bed: &Harness<ClusterEnvironment>) -> Result<BTreeMap<String, u64>> {
    let mut sum = BTreeMap::new();
    for server in bed.environment.servers() {
        for (model, used) in server.counters().await?.models {
            *sum.entry(model).or_default() += used.multi_token();
        }
    }
    sum.retain(|_, count| *count > 0);
    Ok(sum)
}

/// What the picker says that it has rewritten by this rewrite: requests by target.
async fn rewrite_decisions(bed: &Harness<ClusterEnvironment>, rewrite: &str) -> Result<BTreeMap<String, u64>> {
    let address = bed.environment.picker_metrics()?;
    let (_, text) = http::send_request(&address, http::request("GET", "/metrics", None)).await?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let of_rewrite = format!("model_rewrite_name=\"{rewrite}\"");
    let lines = text.lines().filter(|line| {
        line.starts_with("inference_extension_model_rewrite_decisions_total{") && line.contains(&of_rewrite)
    });
    let read = |line: &str| {
        let (_, target) = line.split_once("target_model=\"")?;
        let (target, count) = (target.split('"').next()?, line.rsplit(' ').next()?);
        Some((target.to_owned(), count.parse().ok()?))
    };
    lines.map(|line| read(line).with_context(|| format!("not a counter: {line}"))).collect()
}

/// The status says that these weights should be in force.
fn desired_weights(targets: &[(&str, i32)]) -> WaitCondition {
    let targets: Vec<_> = targets.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    WaitCondition::new(format!("the status says {targets:?}"), move |seen| {
        let weights = seen.status.as_ref().map(|status| status.weights.desired.as_slice()).unwrap_or_default();
        weights.iter().map(|target| (target.id.to_string(), target.weight)).eq(targets.iter().cloned())
    })
}

#[test]
fn the_endpoint_picker_moves_the_traffic_as_the_operator_says() {
    if !has_endpoint_picker("the endpoint picker in place of ext-proc") {
        return;
    }
    let steps = vec![RolloutStep::Weight(50), RolloutStep::IndefinitePause, RolloutStep::Weight(100)];
    let router = RouterKind::EndpointPicker;
    let guide = Setup::guide(Duration::ZERO);
    let setup = Setup { rollout: RolloutManifest { steps, router, ..guide.rollout.clone() }, ..guide };
    let parts = async || {
        Ok(ClusterOptions {
            manifests: vec!["operator-one-namespace", "vllm"],
            picker: Some(EndpointPicker::new(PickerPosition::InsteadOfExtProc)?),
            // Both groups are installed, and this picker reads the legacy one.
            patch_manifests: Box::new(|objects| {
                let operator = objects.object_mut("Deployment", "rollora-operator")?;
                let args = &mut operator["spec"]["template"]["spec"]["containers"][0]["args"];
                push_value(args, json!(format!("--api-group={LEGACY_GROUP}")))
            }),
            ..ClusterOptions::default()
        })
    };
    run_on_cluster(&setup, parts, async |bed| {
        bed.wait_for(succeeded(V1).and(loaded_everywhere(V1)).and(all_servers_ready())).await?;
        bed.start_clients(&client_load());
        bed.wait_for_requests(60).await?;
        bed.list_adapter(V2).await?;
        bed.wait_for(desired_weights(&[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused))).await?;
        check_even_split(bed).await?;

        bed.cli_stdout(&["promote"]).await?;
        bed.wait_for(desired_weights(&[(V2, 100)]).and(succeeded(V2))).await?;
        let then = client_requests_by_adapter(bed).await?;
        bed.wait_for(cleaned_up(V1)).await?;
        bed.wait_for_requests(requests_sent(bed) + 100).await?;
        let record = bed.stop_clients().await?;
        let verdict = record.verdict();
        ensure!(verdict.errors.is_empty(), "{verdict}");

        let (now, decisions) = (client_requests_by_adapter(bed).await?, rewrite_decisions(bed, REWRITE).await?);
        ensure!(now.get(V1) == then.get(V1), "{V1} was asked when it had no weight: {then:?}, {now:?}");
        ensure!(now == decisions, "the servers were asked {now:?}, and the picker decided {decisions:?}");
        let total: u64 = now.values().sum();
        ensure!(total == u64::try_from(record.exchanges.len())?, "{now:?} of {}", record.exchanges.len());
        ensure!(verdict.by_model.keys().eq([MODEL]), "the picker does not put the client's name back: {verdict}");
        Ok(())
    });
}

fn requests_sent(bed: &Harness<ClusterEnvironment>) -> usize {
    bed.current_verdict().map_or(0, |verdict| verdict.requests)
}

/// Of the requests from now on each version gets half.
async fn check_even_split(bed: &Harness<ClusterEnvironment>) -> Result<()> {
    let before = client_requests_by_adapter(bed).await?;
    bed.wait_for_requests(requests_sent(bed) + 300).await?;
    let after = client_requests_by_adapter(bed).await?;
    let since = |(id, count): (String, u64)| {
        let count = count - before.get(&id).copied().unwrap_or_default();
        anyhow::Ok((id, usize::try_from(count)?))
    };
    let by_model = after.into_iter().map(since).collect::<Result<_>>()?;
    let share = SplitSample { weights: vec![(V1.to_owned(), 50), (V2.to_owned(), 50)], by_model };
    ensure!(share.total() >= 290 && share.matches_weights() && share.by_model.len() == 2, "{share}");
    Ok(())
}

#[test]
fn nothing_starts_while_the_picker_behind_ext_proc_would_rewrite_once_more() {
    if !has_endpoint_picker("the endpoint picker behind ext-proc") {
        return;
    }
    let parts = async || {
        Ok(ClusterOptions {
            picker: Some(EndpointPicker::new(PickerPosition::AfterExtProc)?),
            ..ClusterOptions::default()
        })
    };
    run_on_cluster(&Setup::guide(Duration::from_secs(1)), parts, async |bed| {
        bed.wait_for_baseline().await?;
        wait_until_served(bed).await?;
        bed.start_clients(&client_load());

        let rules = json!([{ "targets": [{ "modelRewrite": V1 }] }]);
        bed.environment
            .apply(json!({
                "apiVersion": format!("{LEGACY_GROUP}/v1alpha2"), "kind": "InferenceModelRewrite",
                "metadata": { "name": GENERIC_REWRITE },
                "spec": { "poolRef": { "name": POOL }, "rules": rules },
            }))
            .await?;
        bed.wait_for(double_rewrite_reported()).await?;
        bed.list_adapter(V2).await?;
        bed.assert_holds_for(
            Duration::from_secs(2),
            double_rewrite_reported().and(served_by(MODEL, V1)).and(unloaded_everywhere(V2)),
        )
        .await?;
        let again = rewrite_decisions(bed, GENERIC_REWRITE).await?;
        ensure!(again.contains_key(V1), "the picker rewrites nothing by the generic rule: {again:?}");
        check_double_rewrite_event(bed).await?;

        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(LEGACY_GROUP, "v1alpha2", "InferenceModelRewrite"));
        let rewrites =
            Api::<DynamicObject>::namespaced_with(bed.environment.client(), bed.environment.namespace(), &resource);
        rewrites.delete(GENERIC_REWRITE, &DeleteParams::default()).await?;
        for (old, new) in [(90, 10), (50, 50)] {
            bed.wait_for(traffic_split(MODEL, &[(V1, old), (V2, new)])).await?;
        }
        bed.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        bed.wait_for_requests(requests_sent(bed) + 40).await?;
        let record = bed.stop_clients_and_verify().await?;
        for share in record.split_samples() {
            ensure!(share.matches_weights(), "the versions did not answer as often as their weights say: {share}");
        }
        Ok(())
    });
}

/// Waits until the picker knows the servers, too.
async fn wait_until_served(bed: &Harness<ClusterEnvironment>) -> Result<()> {
    let mut last = None;
    for _ in 0..100 {
        let exchange = send_once(&bed.environment.gateway(), &ChatRequest::new(MODEL, ResponseMode::Json, 2)).await;
        if let RequestOutcome::Succeeded { .. } = exchange.outcome {
            return Ok(());
        }
        last = Some(exchange.outcome);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no request is answered: {last:?}")
}

/// The status says what is wrong and what to do.
fn double_rewrite_reported() -> WaitCondition {
    WaitCondition::new("the status says that the picker would rewrite once more", |seen: &SystemSnapshot| {
        let Ok(status) = &seen.status else { return false };
        status.conditions.iter().any(|condition| {
            let stalled = condition.type_ == condition_type::STALLED && condition.status == ConditionStatus::True;
            let words = [GENERIC_REWRITE, "remove that rule"].iter().all(|words| condition.message.contains(words));
            stalled && condition.reason == reason::DOUBLE_REWRITE && words
        })
    })
}

/// So does an event.
async fn check_double_rewrite_event(bed: &Harness<ClusterEnvironment>) -> Result<()> {
    let events = Api::<Event>::namespaced(bed.environment.client(), bed.environment.namespace());
    let events = events.list(&ListParams::default()).await?.items;
    let tells = |event: &&Event| {
        let note = event.note.as_deref().unwrap_or_default();
        event.reason.as_deref() == Some(reason::DOUBLE_REWRITE)
            && note.contains(GENERIC_REWRITE)
            && note.contains("remove")
    };
    ensure!(events.iter().filter(tells).count() == 1, "not one event tells it: {events:#?}");
    Ok(())
}
