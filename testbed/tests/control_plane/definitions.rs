//! Rollora's CRD and upstream's CRDs, as the API server applies them.

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

/// Returns a Rollout with one field replaced.
fn rollout_with(name: &str, field: &str, value: &Value) -> Value {
    let mut object = rollout(name);
    let value_mut = field.split('.').fold(&mut object, |object, name| &mut object[name]);
    *value_mut = value.clone();
    object
}

#[test]
fn api_server_sets_rollout_defaults() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        let rollouts = api(&plane.admin_client().await?, namespace, "rollora.dev", "v1alpha1", "Rollout");
        let created = create(&rollouts, rollout("short")).await?;
        ensure!(created.data["spec"]["strategy"]["totalWeight"] == 100, "{}", created.data);
        Ok(())
    })
}

#[test]
fn invalid_rollout_is_rejected_with_our_messages() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        let rollouts = api(&plane.admin_client().await?, namespace, "rollora.dev", "v1alpha1", "Rollout");
        let cases = [
            ("spec.adapter", json!({ "follow": { "pattern": "food-v*" }, "id": "food-v1" }), "follow"),
            ("spec.adapter", json!({}), "follow"),
            ("spec.adapter", json!({ "follow": { "pattern": "food-v*" }, "source": "/a" }), "source requires id"),
            ("spec.adapter", json!({ "id": "food" }), "spec.adapter"),
            ("spec.strategy.steps", json!([{ "setWeight": 101 }]), "Weight"),
            ("spec.strategy.steps", json!([{ "setWeight": 10, "pause": {} }]), "setWeight"),
            ("spec.adaptersRef", json!({ "name": "adapters", "key": "rollora.yaml" }), "rollora.yaml"),
            ("spec.model", json!(""), "spec.model"),
        ];
        for (field, value, words) in cases {
            let (code, message) = expect_api_error(create(&rollouts, rollout_with("odd", field, &value)).await)?;
            ensure!(code == 422 && message.contains(words), "{field} = {value}: {code} {message:?} lacks {words:?}");
        }
        Ok(())
    })
}

#[test]
fn immutable_rollout_fields_cannot_be_changed() -> Result<()> {
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
            let (code, message) = expect_api_error(rollouts.patch("fixed", &PatchParams::default(), &patch).await)?;
            ensure!(code == 422 && message.contains(words), "{change}: {code} {message:?} lacks {words:?}");
        }
        let next = Patch::Merge(json!({ "spec": { "adapter": { "id": "food-v2", "source": "/two" } } }));
        rollouts.patch("fixed", &PatchParams::default(), &next).await.context("changing id and source together")?;
        Ok(())
    })
}

#[test]
fn rewrites_of_both_groups_require_positive_weights() -> Result<()> {
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
            let (code, message) = expect_api_error(create(&rewrites, rewrite(0)).await)?;
            ensure!(code == 422 && message.contains("weight"), "{group}: {code} {message}");
        }
        Ok(())
    })
}
