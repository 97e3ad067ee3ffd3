//! JSON Schema of a sidecar's `GET /status` response.

use super::SidecarStatus;
use schemars::{
    Schema,
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::Value;

/// Returns the JSON Schema (draft 2020-12) of `/status`, as the text of `docs/sidecar-status.schema.json`.
///
/// Later versions of the sidecar may add fields: a reader must ignore fields that it does not know.
pub fn schema() -> Result<String, serde_json::Error> {
    let settings = SchemaSettings::draft2020_12().for_serialize().with_transform(StripValidations);
    let mut schema = settings.into_generator().into_root_schema_for::<SidecarStatus>();
    schema.insert("title".to_owned(), Value::from("GET /status of rollora-sidecar"));
    Ok(format!("{}\n", serde_json::to_string_pretty(&schema)?))
}

/// Removes the CEL rules, which only an API server evaluates.
#[derive(Debug, Clone)]
struct StripValidations;

impl Transform for StripValidations {
    fn transform(&mut self, schema: &mut Schema) {
        schema.remove("x-kubernetes-validations");
        transform_subschemas(self, schema);
    }
}
