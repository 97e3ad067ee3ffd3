//! Our custom resource and upstream's, as the API server understands them.

use super::{expect_api_error, on_shared_control_plane};
use anyhow::{Context as _, Result, ensure};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

fn api(client: &Client, namespace: &str, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(client.clone(), namespace, &resource)
}

async fn create(api: &Api<DynamicObject>, object: Value) -> kube::Result<DynamicObject> {
    let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    api.create(&PostParams::default(), &object).await
}

fn rollout(name: &str) -> Value {
    json!({
        "apiVersion": "rollora.dev/v1alpha1",
        "kind": "Rollout",
        "metadata": { "name": name },
        "spec": {
            "model": "food",
            "poolRef": { "name": "pool" },
            "adapter": { "follow": { "pattern": "food-v*" } },
            "adaptersRef": { "name": "adapters" },
            "strategy": { "steps": [{ "setWeight": 10 }, { "pause": {} }, { "setWeight": 100 }] },
        }
    })
}

/// A Rollout with one place of it changed.
fn rollout_with(name: &str, place: &str, value: &Value) -> Value {
    let mut object = rollout(name);
    let below = place.split('.').fold(&mut object, |object, name| &mut object[name]);
    *below = value.clone();
    object
}

#[test]
fn the_api_server_fills_in_what_a_rollout_leaves_out() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        let rollouts = api(&plane.admin_client().await?, namespace, "rollora.dev", "v1alpha1", "Rollout");
        let made = create(&rollouts, rollout("short")).await?;
        ensure!(made.data["spec"]["strategy"]["totalWeight"] == 100, "{}", made.data);
        Ok(())
    })
}

#[test]
fn a_rollout_that_makes_no_sense_is_refused_in_our_words() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        let rollouts = api(&plane.admin_client().await?, namespace, "rollora.dev", "v1alpha1", "Rollout");
        let cases = [
            ("spec.adapter", json!({ "follow": { "pattern": "food-v*" }, "id": "food-v1" }), "follow"),
            ("spec.adapter", json!({}), "follow"),
            ("spec.adapter", json!({ "follow": { "pattern": "food-v*" }, "source": "/a" }), "source goes with id"),
            ("spec.adapter", json!({ "id": "food" }), "spec.adapter"),
            ("spec.strategy.steps", json!([{ "setWeight": 101 }]), "Weight"),
            ("spec.strategy.steps", json!([{ "setWeight": 10, "pause": {} }]), "setWeight"),
            ("spec.adaptersRef", json!({ "name": "adapters", "key": "rollora.yaml" }), "rollora.yaml"),
            ("spec.model", json!(""), "spec.model"),
        ];
        for (place, value, words) in cases {
            let (code, said) = expect_api_error(create(&rollouts, rollout_with("odd", place, &value)).await)?;
            ensure!(code == 422 && said.contains(words), "{place} = {value}: {code} {said:?} lacks {words:?}");
        }
        Ok(())
    })
}

#[test]
fn what_a_rollout_is_about_cannot_be_changed() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        let rollouts = api(&plane.admin_client().await?, namespace, "rollora.dev", "v1alpha1", "Rollout");
        let id = json!({ "id": "food-v1", "source": "/one" });
        create(&rollouts, rollout_with("fixed", "spec.adapter", &id)).await?;
        let cases = [
            (json!({ "model": "drinks" }), "spec.model cannot be changed"),
            (json!({ "poolRef": { "name": "other" } }), "spec.poolRef cannot be changed"),
            (json!({ "rewriteRef": { "name": "other" } }), "spec.rewriteRef cannot be changed"),
            (json!({ "adapter": { "source": "/two" } }), "new weights need a new id"),
        ];
        for (change, words) in cases {
            let patch = Patch::Merge(json!({ "spec": change }));
            let (code, said) = expect_api_error(rollouts.patch("fixed", &PatchParams::default(), &patch).await)?;
            ensure!(code == 422 && said.contains(words), "{change}: {code} {said:?} lacks {words:?}");
        }
        let next = Patch::Merge(json!({ "spec": { "adapter": { "id": "food-v2", "source": "/two" } } }));
        rollouts.patch("fixed", &PatchParams::default(), &next).await.context("a new id with a new source")?;
        Ok(())
    })
}

#[test]
fn a_rewrite_of_either_group_takes_weights_from_one_on() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        for group in ["inference.networking.x-k8s.io", "llm-d.ai"] {
            let rewrites = api(&plane.admin_client().await?, namespace, group, "v1alpha2", "InferenceModelRewrite");
            let rewrite = |weight: i32| {
                json!({
                    "apiVersion": format!("{group}/v1alpha2"),
                    "kind": "InferenceModelRewrite",
                    "metadata": { "name": format!("weight-{weight}") },
                    "spec": {
                        "poolRef": { "name": "pool" },
                        "rules": [{
                            "matches": [{ "model": { "value": "food" } }],
                            "targets": [{ "modelRewrite": "food-v1", "weight": weight }],
                        }],
                    }
                })
            };
            create(&rewrites, rewrite(1)).await.with_context(|| group.to_owned())?;
            let (code, said) = expect_api_error(create(&rewrites, rewrite(0)).await)?;
            ensure!(code == 422 && said.contains("weight"), "{group}: {code} {said}");
        }
        Ok(())
    })
}
