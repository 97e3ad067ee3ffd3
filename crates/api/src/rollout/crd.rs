//! CustomResourceDefinition of Rollouts, generated from the Rust types.

use super::spec::RolloutResource;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value};

/// Returns the definition as installed on a cluster.
pub fn definition() -> Result<CustomResourceDefinition, serde_json::Error> {
    serde_json::from_value(normalize(serde_json::to_value(RolloutResource::crd())?))
}

/// Returns the definition as the text of `crds/rollouts.rollora.dev.yaml`.
pub fn yaml() -> Result<String, CrdError> {
    let text = serde_saphyr::to_string(&normalize(serde_json::to_value(RolloutResource::crd())?))?;
    Ok(format!("# Generated from the Rust types by `cargo xtask crds`. Do not edit.\n{text}"))
}

/// Failure to serialize the definition. Only a mistake in the types can cause it, which a test would show.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// Serialization as JSON failed.
    #[error("cannot serialize the CustomResourceDefinition of Rollouts: {0}")]
    Json(#[from] serde_json::Error),
    /// Serialization as YAML failed.
    #[error("cannot serialize the CustomResourceDefinition of Rollouts: {0}")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// Corrects what the derives generate:
/// - Absent and null mean the same to Rollora, so no field is nullable: the API server then drops nulls before it
///   applies defaults and rules.
/// - Only the operator writes the status, so it has no defaults and no rules.
/// - Bounds are written as integers.
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

/// Returns the integer that a floating-point number equals, or `None` if it has a fraction.
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
