//! The CustomResourceDefinition of Rollouts, made from the Rust types.

use super::spec::RolloutResource;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value};

/// The definition, as it is installed.
pub fn definition() -> Result<CustomResourceDefinition, serde_json::Error> {
    serde_json::from_value(normalize(serde_json::to_value(RolloutResource::crd())?))
}

/// The definition as the text of `crds/rollouts.rollora.dev.yaml`.
pub fn yaml() -> Result<String, CrdError> {
    let text = serde_saphyr::to_string(&normalize(serde_json::to_value(RolloutResource::crd())?))?;
    Ok(format!("# Made from the Rust types by `cargo xtask crds`: changes made here are undone.\n{text}"))
}

/// The definition cannot be written. Only a mistake in the types can cause this, and a test would show it.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// As JSON.
    #[error("cannot write the definition of Rollouts: {0}")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("cannot write the definition of Rollouts: {0}")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// What the derives say more than is meant:
/// - Absent and null mean the same to Rollora, so no field is nullable: the API server then drops nulls before it
///   applies defaults and rules.
/// - Only the operator writes the status, so nothing is filled in or refused there by rules.
/// - Bounds are whole numbers.
fn normalize(mut definition: Value) -> Value {
    for version in definition.pointer_mut("/spec/versions").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(root) = version.pointer_mut("/schema/openAPIV3Schema") else { continue };
        for_each_object(root, &mut |schema| {
            schema.remove("nullable");
            for bound in ["minimum", "maximum"] {
                if let Some(whole) = schema.get(bound).and_then(Value::as_f64).and_then(as_integer) {
                    schema.insert(bound.to_owned(), whole.into());
                }
            }
        });
        if let Some(status) = root.pointer_mut("/properties/status") {
            for_each_object(status, &mut |schema| {
                schema.remove("default");
                schema.remove("x-kubernetes-validations");
            });
        }
    }
    definition
}

/// The whole number that is written as a floating-point one.
fn as_integer(number: f64) -> Option<i64> {
    format!("{number:.0}").parse().ok().filter(|whole: &i64| whole.to_string() == number.to_string())
}

fn for_each_object(value: &mut Value, each: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(fields) => {
            each(fields);
            fields.values_mut().for_each(|value| for_each_object(value, each));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| for_each_object(value, each)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
