//! Parses request bodies: content type, JSON and fields. Errors have vLLM's texts.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};

use super::vllm_error::{ValidationError, VllmError};

type JsonFields = Map<String, Value>;

/// Fields of a load request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoadRequest {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) in_place: bool,
}

impl LoadRequest {
    /// Parses the body of `/v1/load_lora_adapter`.
    pub(super) fn read(body: &Bytes) -> Result<Self, VllmError> {
        let fields = parse_object(body)?;
        let (name, source, in_place) = match (
            string_field(&fields, "lora_name"),
            string_field(&fields, "lora_path"),
            bool_field(&fields, "load_inplace"),
        ) {
            (Ok(name), Ok(source), Ok(in_place)) => (name, source, in_place),
            (name, source, in_place) => {
                let errors = [name.err(), source.err(), in_place.err()];
                return Err(VllmError::InvalidFields(errors.into_iter().flatten().collect()));
            }
        };
        Self { name, source, in_place }.validated()
    }

    /// Parses the body of `/adapters`, which has SageMaker's field names and another format of errors.
    pub(super) fn read_adapter(body: &Bytes) -> Result<Self, VllmError> {
        let fields = parse_object(body)?;
        match (string_field(&fields, "name"), string_field(&fields, "src")) {
            (Ok(name), Ok(source)) => Self { name, source, in_place: false }.validated(),
            (name, source) => {
                let errors = [("name", name.err()), ("src", source.err())].into_iter().filter_map(|(field, error)| {
                    let ValidationError { kind, message, .. } = error?;
                    let input = fields.get(field).cloned().unwrap_or_else(|| Value::Object(fields.clone()));
                    Some(json!({ "type": kind, "loc": [field], "msg": message, "input": input }))
                });
                Err(VllmError::InvalidAdapter(Value::Array(errors.collect()).to_string()))
            }
        }
    }

    fn validated(self) -> Result<Self, VllmError> {
        if self.name.is_empty() || self.source.is_empty() { Err(VllmError::EmptyLoadField) } else { Ok(self) }
    }
}

/// Parses the adapter name from the body of `/v1/unload_lora_adapter`.
pub(super) fn unload_name(body: &Bytes) -> Result<String, VllmError> {
    let name =
        string_field(&parse_object(body)?, "lora_name").map_err(|error| VllmError::InvalidFields(vec![error]))?;
    if name.is_empty() { Err(VllmError::EmptyUnloadName) } else { Ok(name) }
}

/// Rejects every content type except JSON.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), VllmError> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(VllmError::UnsupportedMediaType) }
}

/// Returns the validation errors of a completion whose body cannot be parsed.
pub(super) fn completion_errors(body: &Bytes) -> VllmError {
    let fields = match parse_object(body) {
        Ok(fields) => fields,
        Err(refusal) => return refusal,
    };
    let given = |field| fields.get(field).filter(|value| !value.is_null());
    let messages = match fields.get("messages") {
        None => Some(missing_field(&fields, "messages")),
        Some(Value::Array(_)) => None,
        Some(other) => Some(invalid_field("list_type", "messages", "Input should be a valid list", other)),
    };
    let model = given("model").and_then(|_| string_field(&fields, "model").err());
    let max_tokens = given("max_tokens").and_then(|value| match value {
        Value::Number(number) if number.is_i64() => None,
        Value::Number(_) => {
            let message = "Input should be a valid integer, got a number with a fractional part";
            Some(invalid_field("int_from_float", "max_tokens", message, value))
        }
        _ => {
            let message = "Input should be a valid integer, unable to parse string as an integer";
            Some(invalid_field("int_parsing", "max_tokens", message, value))
        }
    });
    VllmError::InvalidFields([messages, model, max_tokens].into_iter().flatten().collect())
}

/// Returns the error for a body of `/tokenize` without a prompt or messages.
pub(super) fn nothing_to_tokenize(fields: &JsonFields) -> VllmError {
    VllmError::InvalidFields(["prompt", "messages"].map(|field| missing_field(fields, field)).into())
}

/// Parses a body that must be a JSON object.
pub(super) fn parse_object(body: &Bytes) -> Result<JsonFields, VllmError> {
    let refused = |kind, location, message, input: &Value, context| {
        Err(VllmError::InvalidFields(vec![ValidationError {
            kind,
            location,
            message,
            input: python_repr(input),
            context,
        }]))
    };
    let whole = || "body".to_owned();
    let value = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(body) };
    match value {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(Value::Null) => refused("missing", whole(), "Field required", &Value::Null, None),
        Ok(other) => {
            let message = "Input should be a valid dictionary or object to extract fields from";
            refused("model_attributes_type", whole(), message, &other, None)
        }
        Err(error) => {
            let (position, message) = decoder_error(body, &error);
            refused("json_invalid", format!("body.{position}"), "JSON decode error", &json!({}), Some(message))
        }
    }
}

fn string_field(fields: &JsonFields, field: &str) -> Result<String, ValidationError> {
    match fields.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(invalid_field("string_type", field, "Input should be a valid string", other)),
        None => Err(missing_field(fields, field)),
    }
}

fn bool_field(fields: &JsonFields, field: &str) -> Result<bool, ValidationError> {
    match fields.get(field) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => {
            let message = "Input should be a valid boolean, unable to interpret input";
            Err(invalid_field("bool_parsing", field, message, other))
        }
    }
}

fn missing_field(fields: &JsonFields, field: &str) -> ValidationError {
    ValidationError {
        kind: "missing",
        location: format!("body.{field}"),
        message: "Field required",
        input: format!("<dict of {} items>", fields.len()),
        context: None,
    }
}

fn invalid_field(kind: &'static str, field: &str, message: &'static str, given: &Value) -> ValidationError {
    ValidationError { kind, location: format!("body.{field}"), message, input: python_repr(given), context: None }
}

/// Formats a value as vLLM does in a validation error.
fn python_repr(value: &Value) -> String {
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

/// Returns where Python's JSON decoder would stop, and its message; correct for the frequent cases.
fn decoder_error(body: &[u8], error: &serde_json::Error) -> (usize, &'static str) {
    let lines_before = body.split_inclusive(|&byte| byte == b'\n').take(error.line().saturating_sub(1));
    let read = lines_before.map(<[u8]>::len).sum::<usize>() + error.column();
    // serde_json counts the unexpected character as read, but there is none at the end of the text.
    let position = if error.is_eof() { body.len() } else { read.saturating_sub(1) };
    let message = error.to_string();
    let expecting = |what| if message.starts_with(what) { Some(position) } else { None };
    let name = "Expecting property name enclosed in double quotes";
    if let Some(position) = expecting("key must be a string").or(expecting("trailing comma")) {
        (position, name)
    } else if message.starts_with("EOF while parsing a string") {
        (body.iter().rposition(|&byte| byte == b'"').unwrap_or_default(), "Unterminated string starting at")
    } else if message.starts_with("EOF while parsing an object") && body.trim_ascii_end().ends_with(b"{") {
        (position, name)
    } else if let Some(position) = expecting("expected `:`") {
        (position, "Expecting ':' delimiter")
    } else if let Some(position) = expecting("expected `,`").or(expecting("EOF while parsing")) {
        (position, "Expecting ',' delimiter")
    } else if let Some(position) = expecting("trailing characters") {
        (position, "Extra data")
    } else if let Some(position) = expecting("expected ident") {
        (
            body[..position].iter().rposition(|byte| !byte.is_ascii_lowercase()).map_or(0, |before| before + 1),
            "Expecting value",
        )
    } else {
        (position, "Expecting value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_json_is_reported_as_by_vllm() {
        let name = "Expecting property name enclosed in double quotes";
        let comma = "Expecting ',' delimiter";
        for (body, position, message) in [
            ("{nope", 1, name),
            ("{\"lora_name\": \"a", 14, "Unterminated string starting at"),
            ("{\"lora_name\" \"a\"}", 13, "Expecting ':' delimiter"),
            ("{\"lora_name\": \"a\" \"b\"}", 18, comma),
            ("{\"a\":1} x", 8, "Extra data"),
            ("{\"a\":}", 5, "Expecting value"),
            ("{\"a\":1,}", 7, name),
            ("nope", 0, "Expecting value"),
            ("{", 1, name),
            ("[1,2", 4, comma),
            ("{\"a\":1", 6, comma),
            ("{\"a\":\n\nx}", 7, "Expecting value"),
        ] {
            let refusal = parse_object(&Bytes::from_static(body.as_bytes())).expect_err("invalid JSON");
            let VllmError::InvalidFields(errors) = refusal else { panic!("{body}: {refusal}") };
            assert_eq!(
                (errors[0].location.clone(), errors[0].context),
                (format!("body.{position}"), Some(message)),
                "{body}"
            );
        }
    }
}
