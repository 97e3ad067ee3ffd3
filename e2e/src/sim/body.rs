//! Reading a request's body: content type, JSON, fields, refused in vLLM's words.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

use super::refusal::{FieldError, Refusal};

/// The fields of a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoadRequest {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) in_place: bool,
}

/// Refuses every content type but JSON.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(Refusal::NotJson) }
}

/// Reads a load in the given field names: `lora_name` and `lora_path`, or SageMaker's `name` and `src`.
pub(super) fn load_request(body: &Bytes, [name, source]: [&str; 2]) -> Result<LoadRequest, Refusal> {
    let fields = object(body)?;
    let (name, source) = match (string(&fields, name), string(&fields, source)) {
        (Ok(name), Ok(source)) => (name, source),
        (name, source) => return Err(Refusal::Invalid([name.err(), source.err()].into_iter().flatten().collect())),
    };
    if name.is_empty() || source.is_empty() {
        return Err(Refusal::EmptyField);
    }
    let in_place = fields.get("load_inplace").and_then(Value::as_bool).unwrap_or(false);
    Ok(LoadRequest { name, source, in_place })
}

/// Reads the name of an unload.
pub(super) fn unload_request(body: &Bytes) -> Result<String, Refusal> {
    let name = string(&object(body)?, "lora_name").map_err(|error| Refusal::Invalid(vec![error]))?;
    if name.is_empty() { Err(Refusal::EmptyName) } else { Ok(name) }
}

/// The refusal of a body that lacks a field.
pub(super) fn missing(fields: &Map<String, Value>, field: &str) -> Refusal {
    Refusal::Invalid(vec![missing_field(fields, field)])
}

/// Reads a body that must be an object.
pub(super) fn object(body: &Bytes) -> Result<Map<String, Value>, Refusal> {
    let refused = |kind, location, message, input, context| {
        Err(Refusal::Invalid(vec![FieldError { kind, location, message, input, context }]))
    };
    if body.is_empty() {
        return refused("missing", "body".to_owned(), "Field required", python(&Value::Null), None);
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => refused(
            "model_attributes_type",
            "body".to_owned(),
            "Input should be a valid dictionary or object to extract fields from",
            python(&other),
            None,
        ),
        Err(error) => {
            let (position, said) = decoder_error(body, &error);
            let input = python(&Value::Object(Map::new()));
            refused("json_invalid", format!("body.{position}"), "JSON decode error", input, Some(said))
        }
    }
}

fn string(fields: &Map<String, Value>, field: &str) -> Result<String, FieldError> {
    match fields.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        None => Err(missing_field(fields, field)),
        Some(other) => Err(FieldError {
            kind: "string_type",
            location: format!("body.{field}"),
            message: "Input should be a valid string",
            input: python(other),
            context: None,
        }),
    }
}

fn missing_field(fields: &Map<String, Value>, field: &str) -> FieldError {
    FieldError {
        kind: "missing",
        location: format!("body.{field}"),
        message: "Field required",
        input: format!("<dict of {} items>", fields.len()),
        context: None,
    }
}

/// A value as vLLM shows it in a validation error.
fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("<list of {} items>", items.len()),
        Value::Object(fields) => format!("<dict of {} items>", fields.len()),
    }
}

/// Where Python's JSON decoder stops at a broken body, and what it says; the frequent cases only.
fn decoder_error(body: &[u8], error: &serde_json::Error) -> (usize, &'static str) {
    let said = error.to_string();
    let line_start: usize =
        body.split_inclusive(|&byte| byte == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let position = (line_start + error.column()).saturating_sub(1);
    if said.starts_with("key must be a string") {
        (position, "Expecting property name enclosed in double quotes")
    } else if said.starts_with("EOF while parsing a string") {
        let quote = body.iter().rposition(|&byte| byte == b'"').unwrap_or_default();
        (quote, "Unterminated string starting at")
    } else if said.starts_with("expected `:`") {
        (position, "Expecting ':' delimiter")
    } else if said.starts_with("expected `,`") {
        (position, "Expecting ',' delimiter")
    } else if said.starts_with("trailing characters") {
        (position, "Extra data")
    } else {
        (position, "Expecting value")
    }
}
