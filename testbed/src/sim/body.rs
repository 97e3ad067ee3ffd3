//! Reading a request's body: content type, JSON, fields, refused in vLLM's words.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};

use super::refusal::{FieldError, Refusal};

type Fields = Map<String, Value>;

/// The fields of a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoadRequest {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) in_place: bool,
}

impl LoadRequest {
    /// Reads the body of `/v1/load_lora_adapter`.
    pub(super) fn read(body: &Bytes) -> Result<Self, Refusal> {
        let fields = object(body)?;
        let (name, source, in_place) =
            match (string(&fields, "lora_name"), string(&fields, "lora_path"), boolean(&fields, "load_inplace")) {
                (Ok(name), Ok(source), Ok(in_place)) => (name, source, in_place),
                (name, source, in_place) => {
                    let errors = [name.err(), source.err(), in_place.err()];
                    return Err(Refusal::Invalid(errors.into_iter().flatten().collect()));
                }
            };
        Self { name, source, in_place }.checked()
    }

    /// Reads the body of `/adapters`, where the fields have SageMaker's names and errors another shape.
    pub(super) fn read_adapter(body: &Bytes) -> Result<Self, Refusal> {
        let fields = object(body)?;
        match (string(&fields, "name"), string(&fields, "src")) {
            (Ok(name), Ok(source)) => Self { name, source, in_place: false }.checked(),
            (name, source) => {
                let errors = [("name", name.err()), ("src", source.err())].into_iter().filter_map(|(field, error)| {
                    let FieldError { kind, message, .. } = error?;
                    let input = fields.get(field).cloned().unwrap_or_else(|| Value::Object(fields.clone()));
                    Some(json!({ "type": kind, "loc": [field], "msg": message, "input": input }))
                });
                Err(Refusal::InvalidAdapter(Value::Array(errors.collect()).to_string()))
            }
        }
    }

    fn checked(self) -> Result<Self, Refusal> {
        if self.name.is_empty() || self.source.is_empty() { Err(Refusal::EmptyField) } else { Ok(self) }
    }
}

/// Reads the name out of the body of `/v1/unload_lora_adapter`.
pub(super) fn unload_name(body: &Bytes) -> Result<String, Refusal> {
    let name = string(&object(body)?, "lora_name").map_err(|error| Refusal::Invalid(vec![error]))?;
    if name.is_empty() { Err(Refusal::EmptyName) } else { Ok(name) }
}

/// Refuses every content type but JSON.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(Refusal::NotJson) }
}

/// Says why the body of a completion cannot be read.
pub(super) fn completion_errors(body: &Bytes) -> Refusal {
    let fields = match object(body) {
        Ok(fields) => fields,
        Err(refusal) => return refusal,
    };
    let given = |field| fields.get(field).filter(|value| !value.is_null());
    let messages = match fields.get("messages") {
        None => Some(missing(&fields, "messages")),
        Some(Value::Array(_)) => None,
        Some(other) => Some(wrong("list_type", "messages", "Input should be a valid list", other)),
    };
    let model = given("model").and_then(|_| string(&fields, "model").err());
    let max_tokens = given("max_tokens").and_then(|value| match value {
        Value::Number(number) if number.is_i64() => None,
        Value::Number(_) => {
            let message = "Input should be a valid integer, got a number with a fractional part";
            Some(wrong("int_from_float", "max_tokens", message, value))
        }
        _ => {
            let message = "Input should be a valid integer, unable to parse string as an integer";
            Some(wrong("int_parsing", "max_tokens", message, value))
        }
    });
    Refusal::Invalid([messages, model, max_tokens].into_iter().flatten().collect())
}

/// Says that the body of `/tokenize` has nothing in it to tokenize.
pub(super) fn nothing_to_tokenize(fields: &Fields) -> Refusal {
    Refusal::Invalid(["prompt", "messages"].map(|field| missing(fields, field)).into())
}

/// Reads a body that must be an object.
pub(super) fn object(body: &Bytes) -> Result<Fields, Refusal> {
    let refused = |kind, location, message, input: &Value, context| {
        Err(Refusal::Invalid(vec![FieldError { kind, location, message, input: python(input), context }]))
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
            let (position, said) = decoder_error(body, &error);
            refused("json_invalid", format!("body.{position}"), "JSON decode error", &json!({}), Some(said))
        }
    }
}

fn string(fields: &Fields, field: &str) -> Result<String, FieldError> {
    match fields.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(wrong("string_type", field, "Input should be a valid string", other)),
        None => Err(missing(fields, field)),
    }
}

fn boolean(fields: &Fields, field: &str) -> Result<bool, FieldError> {
    match fields.get(field) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => {
            let message = "Input should be a valid boolean, unable to interpret input";
            Err(wrong("bool_parsing", field, message, other))
        }
    }
}

fn missing(fields: &Fields, field: &str) -> FieldError {
    FieldError {
        kind: "missing",
        location: format!("body.{field}"),
        message: "Field required",
        input: format!("<dict of {} items>", fields.len()),
        context: None,
    }
}

fn wrong(kind: &'static str, field: &str, message: &'static str, given: &Value) -> FieldError {
    FieldError { kind, location: format!("body.{field}"), message, input: python(given), context: None }
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

/// Where Python's JSON decoder stops at a broken body, and what it says; right for the frequent cases.
fn decoder_error(body: &[u8], error: &serde_json::Error) -> (usize, &'static str) {
    let lines_before = body.split_inclusive(|&byte| byte == b'\n').take(error.line().saturating_sub(1));
    let read = lines_before.map(<[u8]>::len).sum::<usize>() + error.column();
    // serde_json counts the character that it stumbled over as read, but the end of the text is none.
    let position = if error.is_eof() { body.len() } else { read.saturating_sub(1) };
    let said = error.to_string();
    let expecting = |what| if said.starts_with(what) { Some(position) } else { None };
    let name = "Expecting property name enclosed in double quotes";
    if let Some(position) = expecting("key must be a string").or(expecting("trailing comma")) {
        (position, name)
    } else if said.starts_with("EOF while parsing a string") {
        (body.iter().rposition(|&byte| byte == b'"').unwrap_or_default(), "Unterminated string starting at")
    } else if said.starts_with("EOF while parsing an object") && body.trim_ascii_end().ends_with(b"{") {
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
    fn broken_json_is_described_as_vllm_was_seen_to() {
        let name = "Expecting property name enclosed in double quotes";
        let comma = "Expecting ',' delimiter";
        for (body, position, said) in [
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
            let refusal = object(&Bytes::from_static(body.as_bytes())).expect_err("broken");
            let Refusal::Invalid(errors) = refusal else { panic!("{body}: {refusal}") };
            assert_eq!(
                (errors[0].location.clone(), errors[0].context),
                (format!("body.{position}"), Some(said)),
                "{body}"
            );
        }
    }
}
