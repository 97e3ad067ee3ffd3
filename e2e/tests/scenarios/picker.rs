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
    bed::{Bed, Place as _, Setup},
    cluster::{Cluster, Parts},
    files::{RolloutFile, Step},
    judge::Share,
    scenario::on_a_cluster,
    seen::{
        Condition, Seen, cleaned_up, every_server_is_ready, gone_everywhere, loaded_everywhere, phase, served_by,
        split, succeeded,
    },
    traffic::{Ask, Crowd, Kind, Outcome, ask_once},
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

const LEGACY: &str = "inference.networking.x-k8s.io";
const GENERIC: &str = "everything";

fn has_a_picker(what: &str) -> bool {
    tools::all_available(&[CONTROL_PLANE, ENVOY, ENDPOINT_PICKER], what)
}

/// Clients that no proof of residency can be taken for.
fn crowd() -> Crowd {
    let whole = |tokens| Ask::new(MODEL, Kind::Json, tokens);
    let connections = vec![whole(2), whole(2), whole(4), Ask::new(MODEL, Kind::Sse, 6)];
    Crowd { connections, pace: Duration::from_millis(20) }
}

/// What all servers were asked by clients, by adapter.
async fn asked(bed: &Bed<Cluster>) -> Result<BTreeMap<String, u64>> {
    let mut sum = BTreeMap::new();
    for server in bed.place.servers() {
        for (model, used) in server.counters().await?.models {
            *sum.entry(model).or_default() += used.multi_token();
        }
    }
    sum.retain(|_, count| *count > 0);
    Ok(sum)
}

/// What the picker says that it has rewritten by this rewrite: requests by target.
async fn decided(bed: &Bed<Cluster>, rewrite: &str) -> Result<BTreeMap<String, u64>> {
    let address = bed.place.picker_metrics()?;
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
fn wanted(targets: &[(&str, i32)]) -> Condition {
    let targets: Vec<_> = targets.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    Condition::new(format!("the status says {targets:?}"), move |seen| {
        let weights = seen.status.as_ref().map(|status| status.weights.desired.as_slice()).unwrap_or_default();
        weights.iter().map(|target| (target.id.to_string(), target.weight)).eq(targets.iter().cloned())
    })
}

#[test]
fn the_endpoint_picker_moves_the_traffic_as_the_operator_says() {
    if !has_a_picker("the endpoint picker in place of ext-proc") {
        return;
    }
    let steps = vec![Step::Weight(50), Step::OpenPause, Step::Weight(100)];
    let router = RouterKind::EndpointPicker;
    let guide = Setup::guide(Duration::ZERO);
    let setup = Setup { rollout: RolloutFile { steps, router, ..guide.rollout.clone() }, ..guide };
    let parts = async || {
        Ok(Parts {
            manifests: vec!["operator-one-namespace", "vllm"],
            picker: Some(EndpointPicker::new(PickerPosition::InsteadOfExtProc)?),
            // Both groups are installed, and this picker reads the legacy one.
            change: Box::new(|objects| {
                let operator = objects.object_mut("Deployment", "rollora-operator")?;
                let args = &mut operator["spec"]["template"]["spec"]["containers"][0]["args"];
                push_value(args, json!(format!("--api-group={LEGACY}")))
            }),
            ..Parts::default()
        })
    };
    on_a_cluster(&setup, parts, async |bed| {
        bed.sees(succeeded(V1).and(loaded_everywhere(V1)).and(every_server_is_ready())).await?;
        bed.clients_start(&crowd());
        bed.clients_sent(60).await?;
        bed.list(V2).await?;
        bed.sees(wanted(&[(V1, 50), (V2, 50)]).and(phase(Phase::Paused))).await?;
        half_and_half(bed).await?;

        bed.says(&["promote"]).await?;
        bed.sees(wanted(&[(V2, 100)]).and(succeeded(V2))).await?;
        let then = asked(bed).await?;
        bed.sees(cleaned_up(V1)).await?;
        bed.clients_sent(sent(bed) + 100).await?;
        let record = bed.clients_stop().await?;
        let verdict = record.verdict();
        ensure!(verdict.errors.is_empty(), "{verdict}");

        let (now, decisions) = (asked(bed).await?, decided(bed, REWRITE).await?);
        ensure!(now.get(V1) == then.get(V1), "{V1} was asked when it had no weight: {then:?}, {now:?}");
        ensure!(now == decisions, "the servers were asked {now:?}, and the picker decided {decisions:?}");
        let total: u64 = now.values().sum();
        ensure!(total == u64::try_from(record.exchanges.len())?, "{now:?} of {}", record.exchanges.len());
        ensure!(verdict.by_model.keys().eq([MODEL]), "the picker does not put the client's name back: {verdict}");
        Ok(())
    });
}

fn sent(bed: &Bed<Cluster>) -> usize {
    bed.clients_so_far().map_or(0, |verdict| verdict.requests)
}

/// Of the requests from now on each version gets half.
async fn half_and_half(bed: &Bed<Cluster>) -> Result<()> {
    let before = asked(bed).await?;
    bed.clients_sent(sent(bed) + 300).await?;
    let after = asked(bed).await?;
    let since = |(id, count): (String, u64)| {
        let count = count - before.get(&id).copied().unwrap_or_default();
        anyhow::Ok((id, usize::try_from(count)?))
    };
    let by_model = after.into_iter().map(since).collect::<Result<_>>()?;
    let share = Share { weights: vec![(V1.to_owned(), 50), (V2.to_owned(), 50)], by_model };
    ensure!(share.total() >= 290 && share.fits() && share.by_model.len() == 2, "{share}");
    Ok(())
}

#[test]
fn nothing_starts_while_the_picker_behind_ext_proc_would_rewrite_once_more() {
    if !has_a_picker("the endpoint picker behind ext-proc") {
        return;
    }
    let parts =
        async || Ok(Parts { picker: Some(EndpointPicker::new(PickerPosition::AfterExtProc)?), ..Parts::default() });
    on_a_cluster(&Setup::guide(Duration::from_secs(1)), parts, async |bed| {
        bed.sees_baseline().await?;
        is_served(bed).await?;
        bed.clients_start(&crowd());

        let rules = json!([{ "targets": [{ "modelRewrite": V1 }] }]);
        bed.place
            .apply(json!({
                "apiVersion": format!("{LEGACY}/v1alpha2"), "kind": "InferenceModelRewrite",
                "metadata": { "name": GENERIC },
                "spec": { "poolRef": { "name": POOL }, "rules": rules },
            }))
            .await?;
        bed.sees(said()).await?;
        bed.list(V2).await?;
        bed.keeps_seeing(Duration::from_secs(2), said().and(served_by(MODEL, V1)).and(gone_everywhere(V2))).await?;
        let again = decided(bed, GENERIC).await?;
        ensure!(again.contains_key(V1), "the picker rewrites nothing by the generic rule: {again:?}");
        told(bed).await?;

        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(LEGACY, "v1alpha2", "InferenceModelRewrite"));
        let rewrites = Api::<DynamicObject>::namespaced_with(bed.place.client(), bed.place.namespace(), &resource);
        rewrites.delete(GENERIC, &DeleteParams::default()).await?;
        for (old, new) in [(90, 10), (50, 50)] {
            bed.sees(split(MODEL, &[(V1, old), (V2, new)])).await?;
        }
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        bed.clients_sent(sent(bed) + 40).await?;
        let record = bed.clients_saw_nothing_wrong().await?;
        for share in record.shares() {
            ensure!(share.fits(), "the versions did not answer as often as their weights say: {share}");
        }
        Ok(())
    });
}

/// Waits until the picker knows the servers, too.
async fn is_served(bed: &Bed<Cluster>) -> Result<()> {
    let mut last = None;
    for _ in 0..100 {
        let exchange = ask_once(&bed.place.gateway(), &Ask::new(MODEL, Kind::Json, 2)).await;
        if let Outcome::Answered { .. } = exchange.outcome {
            return Ok(());
        }
        last = Some(exchange.outcome);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no request is answered: {last:?}")
}

/// The status says what is wrong and what to do.
fn said() -> Condition {
    Condition::new("the status says that the picker would rewrite once more", |seen: &Seen| {
        let Ok(status) = &seen.status else { return false };
        status.conditions.iter().any(|condition| {
            let stalled = condition.type_ == condition_type::STALLED && condition.status == ConditionStatus::True;
            let words = [GENERIC, "remove that rule"].iter().all(|words| condition.message.contains(words));
            stalled && condition.reason == reason::DOUBLE_REWRITE && words
        })
    })
}

/// So does an event.
async fn told(bed: &Bed<Cluster>) -> Result<()> {
    let events = Api::<Event>::namespaced(bed.place.client(), bed.place.namespace());
    let events = events.list(&ListParams::default()).await?.items;
    let tells = |event: &&Event| {
        let note = event.note.as_deref().unwrap_or_default();
        event.reason.as_deref() == Some(reason::DOUBLE_REWRITE) && note.contains(GENERIC) && note.contains("remove")
    };
    ensure!(events.iter().filter(tells).count() == 1, "not one event tells it: {events:#?}");
    Ok(())
}
