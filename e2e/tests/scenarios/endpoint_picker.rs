//! Upstream's endpoint picker: in place of ext-proc it applies the rewrites, and behind ext-proc it applies them a
//! second time.
//!
//! The picker puts the client's model name into the response, so `.model` does not identify the version. These tests
//! count the requests that the servers received, without the sidecars' probes, which have one token.

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

/// Returns clients whose requests cannot be mistaken for a sidecar's probe of one token.
fn client_load() -> LoadProfile {
    let whole = |tokens| ChatRequest::new(MODEL, ResponseMode::Json, tokens);
    let connections = vec![whole(2), whole(2), whole(4), ChatRequest::new(MODEL, ResponseMode::Sse, 6)];
    LoadProfile { connections, interval: Duration::from_millis(20) }
}

/// Returns the number of client requests at all servers, by adapter.
async fn client_requests_by_adapter(harness: &Harness<ClusterEnvironment>) -> Result<BTreeMap<String, u64>> {
    let mut sum = BTreeMap::new();
    for server in harness.environment.servers() {
        for (model, used) in server.counters().await?.models {
            *sum.entry(model).or_default() += used.multi_token();
        }
    }
    sum.retain(|_, count| *count > 0);
    Ok(sum)
}

/// Returns the picker's count of requests that it rewrote by this rewrite, by target.
async fn rewrite_decisions(harness: &Harness<ClusterEnvironment>, rewrite: &str) -> Result<BTreeMap<String, u64>> {
    let address = harness.environment.picker_metrics()?;
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

/// Holds if these are the desired weights of the status.
fn desired_weights(targets: &[(&str, i32)]) -> WaitCondition {
    let targets: Vec<_> = targets.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    WaitCondition::new(format!("the desired weights are {targets:?}"), move |snapshot| {
        let weights = snapshot.status.as_ref().map(|status| status.weights.desired.as_slice()).unwrap_or_default();
        weights.iter().map(|target| (target.id.to_string(), target.weight)).eq(targets.iter().cloned())
    })
}

#[test]
fn endpoint_picker_applies_the_operators_weights() {
    if !has_endpoint_picker("the endpoint picker in place of ext-proc") {
        return;
    }
    let steps = vec![RolloutStep::Weight(50), RolloutStep::IndefinitePause, RolloutStep::Weight(100)];
    let router = RouterKind::EndpointPicker;
    let guide = Setup::guide(Duration::ZERO);
    let setup = Setup { rollout: RolloutManifest { steps, router, ..guide.rollout.clone() }, ..guide };
    let options = async || {
        Ok(ClusterOptions {
            manifests: vec!["operator-one-namespace", "vllm"],
            picker: Some(EndpointPicker::new(PickerPosition::InsteadOfExtProc)?),
            // Both groups are installed; this picker reads the legacy one.
            patch_manifests: Box::new(|objects| {
                let operator = objects.object_mut("Deployment", "rollora-operator")?;
                let args = &mut operator["spec"]["template"]["spec"]["containers"][0]["args"];
                push_value(args, json!(format!("--api-group={LEGACY_GROUP}")))
            }),
            ..ClusterOptions::default()
        })
    };
    run_on_cluster(&setup, options, async |harness| {
        harness.wait_for(succeeded(V1).and(loaded_everywhere(V1)).and(all_servers_ready())).await?;
        harness.start_clients(&client_load());
        harness.wait_for_requests(60).await?;
        harness.list_adapter(V2).await?;
        harness.wait_for(desired_weights(&[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused))).await?;
        check_even_split(harness).await?;

        harness.cli_stdout(&["promote"]).await?;
        harness.wait_for(desired_weights(&[(V2, 100)]).and(succeeded(V2))).await?;
        let then = client_requests_by_adapter(harness).await?;
        harness.wait_for(cleaned_up(V1)).await?;
        harness.wait_for_requests(requests_sent(harness) + 100).await?;
        let record = harness.stop_clients().await?;
        let verdict = record.verdict();
        ensure!(verdict.errors.is_empty(), "{verdict}");

        let (now, decisions) = (client_requests_by_adapter(harness).await?, rewrite_decisions(harness, REWRITE).await?);
        ensure!(now.get(V1) == then.get(V1), "{V1} got requests without weight: {then:?}, {now:?}");
        ensure!(now == decisions, "the servers received {now:?}, and the picker decided {decisions:?}");
        let total: u64 = now.values().sum();
        ensure!(total == u64::try_from(record.exchanges.len())?, "{now:?} of {}", record.exchanges.len());
        ensure!(verdict.by_model.keys().eq([MODEL]), "the picker does not restore the client's name: {verdict}");
        Ok(())
    });
}

fn requests_sent(harness: &Harness<ClusterEnvironment>) -> usize {
    harness.current_verdict().map_or(0, |verdict| verdict.requests)
}

/// Fails unless each version gets half of the next requests.
async fn check_even_split(harness: &Harness<ClusterEnvironment>) -> Result<()> {
    let before = client_requests_by_adapter(harness).await?;
    harness.wait_for_requests(requests_sent(harness) + 300).await?;
    let after = client_requests_by_adapter(harness).await?;
    let since = |(id, count): (String, u64)| {
        let count = count - before.get(&id).copied().unwrap_or_default();
        anyhow::Ok((id, usize::try_from(count)?))
    };
    let by_model = after.into_iter().map(since).collect::<Result<_>>()?;
    let sample = SplitSample { weights: vec![(V1.to_owned(), 50), (V2.to_owned(), 50)], by_model };
    ensure!(sample.total() >= 290 && sample.matches_weights() && sample.by_model.len() == 2, "{sample}");
    Ok(())
}

#[test]
fn rollout_waits_while_the_picker_rewrites_twice() {
    if !has_endpoint_picker("the endpoint picker behind ext-proc") {
        return;
    }
    let options = async || {
        Ok(ClusterOptions {
            picker: Some(EndpointPicker::new(PickerPosition::AfterExtProc)?),
            ..ClusterOptions::default()
        })
    };
    run_on_cluster(&Setup::guide(Duration::from_secs(1)), options, async |harness| {
        harness.wait_for_baseline().await?;
        wait_until_served(harness).await?;
        harness.start_clients(&client_load());

        let rules = json!([{ "targets": [{ "modelRewrite": V1 }] }]);
        harness
            .environment
            .apply(json!({
                "apiVersion": format!("{LEGACY_GROUP}/v1alpha2"), "kind": "InferenceModelRewrite",
                "metadata": { "name": GENERIC_REWRITE },
                "spec": { "poolRef": { "name": POOL }, "rules": rules },
            }))
            .await?;
        harness.wait_for(double_rewrite_reported()).await?;
        harness.list_adapter(V2).await?;
        harness
            .assert_holds_for(
                Duration::from_secs(2),
                double_rewrite_reported().and(served_by(MODEL, V1)).and(unloaded_everywhere(V2)),
            )
            .await?;
        let again = rewrite_decisions(harness, GENERIC_REWRITE).await?;
        ensure!(again.contains_key(V1), "the picker does not apply the generic rule: {again:?}");
        check_double_rewrite_event(harness).await?;

        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(LEGACY_GROUP, "v1alpha2", "InferenceModelRewrite"));
        let rewrites = Api::<DynamicObject>::namespaced_with(
            harness.environment.client(),
            harness.environment.namespace(),
            &resource,
        );
        rewrites.delete(GENERIC_REWRITE, &DeleteParams::default()).await?;
        for (old, new) in [(90, 10), (50, 50)] {
            harness.wait_for(traffic_split(MODEL, &[(V1, old), (V2, new)])).await?;
        }
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        harness.wait_for_requests(requests_sent(harness) + 40).await?;
        let record = harness.stop_clients_and_verify().await?;
        for sample in record.split_samples() {
            ensure!(sample.matches_weights(), "the split of requests does not match the weights: {sample}");
        }
        Ok(())
    });
}

/// Waits until requests succeed: the picker has to discover the servers too.
async fn wait_until_served(harness: &Harness<ClusterEnvironment>) -> Result<()> {
    let mut last = None;
    for _ in 0..100 {
        let record = send_once(&harness.environment.gateway(), &ChatRequest::new(MODEL, ResponseMode::Json, 2)).await;
        if let RequestOutcome::Succeeded { .. } = record.outcome {
            return Ok(());
        }
        last = Some(record.outcome);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no request succeeds: {last:?}")
}

/// Holds if the condition names the second rewrite and what to do.
fn double_rewrite_reported() -> WaitCondition {
    WaitCondition::new("the status reports that the picker would rewrite a second time", |snapshot: &SystemSnapshot| {
        let Ok(status) = &snapshot.status else { return false };
        status.conditions.iter().any(|condition| {
            let stalled = condition.type_ == condition_type::STALLED && condition.status == ConditionStatus::True;
            let words = [GENERIC_REWRITE, "remove that rule"].iter().all(|words| condition.message.contains(words));
            stalled && condition.reason == reason::DOUBLE_REWRITE && words
        })
    })
}

/// Fails unless exactly one event reports the second rewrite.
async fn check_double_rewrite_event(harness: &Harness<ClusterEnvironment>) -> Result<()> {
    let events = Api::<Event>::namespaced(harness.environment.client(), harness.environment.namespace());
    let events = events.list(&ListParams::default()).await?.items;
    let reports = |event: &&Event| {
        let note = event.note.as_deref().unwrap_or_default();
        event.reason.as_deref() == Some(reason::DOUBLE_REWRITE)
            && note.contains(GENERIC_REWRITE)
            && note.contains("remove")
    };
    ensure!(events.iter().filter(reports).count() == 1, "expected exactly one event: {events:#?}");
    Ok(())
}
