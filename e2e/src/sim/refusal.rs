//! Every answer that says no, with vLLM's status, text and shape.
//!
//! Four shapes occur: vLLM's own error object, `{"detail"}` from its web framework, `{"error": "Unauthorized"}` from
//! its key check, and the validation errors of [`FieldError`], which are an error object again.

use std::fmt;

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

/// An answer that says no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("Not Found")]
    NoSuchPath,
    #[error("Method Not Allowed")]
    WrongMethod,
    #[error("Unauthorized")]
    Unauthorized,
    #[error("1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed")]
    NotJson,
    #[error("{}", validation_text(.0))]
    Invalid(Vec<FieldError>),
    #[error("Both 'lora_name' and 'lora_path' must be provided.")]
    EmptyField,
    #[error("Either 'lora_name' or 'lora_int_id' needs to be provided.")]
    EmptyName,
    #[error("The lora adapter '{0}' conflicts with a served base model.")]
    NameOfBaseModel(String),
    #[error(
        "The lora adapter '{0}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' \
         to True."
    )]
    AlreadyLoaded(String),
    #[error("Loading lora {name} failed: No adapter found for {source_shown}")]
    NoAdapterAt { name: String, source_shown: String },
    #[error(
        "Call to add_lora method failed: Worker failed with error '{0}', please check the stack trace above for the \
         root cause"
    )]
    Worker(String),
    #[error("The lora adapter '{0}' cannot be found.")]
    NotLoaded(String),
    #[error("The model `{model}` does not exist. Valid aliases: {base}.")]
    NoSuchModel { model: String, base: String },
    #[error(
        "This model's maximum context length is {limit} tokens. However, your prompt contains {characters} characters \
         (more than {most} characters, which is the upper bound for {limit} input tokens). Please reduce the length \
         of the input prompt. (parameter=input_text, value={characters})"
    )]
    PromptTooLong { limit: usize, characters: usize, most: usize },
    #[error("EngineCore encountered an issue. See stack trace (above) for the root cause.")]
    EngineDead,
    #[error("cannot schedule new futures after shutdown")]
    ShuttingDown,
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoSuchPath | Self::NoAdapterAt { .. } | Self::NotLoaded(_) | Self::NoSuchModel { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::NotJson
            | Self::Invalid(_)
            | Self::EmptyField
            | Self::EmptyName
            | Self::NameOfBaseModel(_)
            | Self::AlreadyLoaded(_)
            | Self::PromptTooLong { .. } => StatusCode::BAD_REQUEST,
            Self::Worker(_) | Self::EngineDead | Self::ShuttingDown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The body, as JSON.
    pub(super) fn body(&self) -> Value {
        let message = self.to_string();
        match self {
            Self::NoSuchPath | Self::WrongMethod => json!({ "detail": message }),
            Self::Unauthorized => json!({ "error": message }),
            _ => json!({ "error": ErrorObject {
                message,
                kind: self.kind(),
                param: self.param(),
                code: self.status().as_u16(),
            }}),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::NotJson | Self::Invalid(_) => "Bad Request",
            Self::PromptTooLong { .. } => "BadRequestError",
            _ if self.status() == StatusCode::NOT_FOUND => "NotFoundError",
            _ if self.status() == StatusCode::BAD_REQUEST => "InvalidUserInput",
            _ => "InternalServerError",
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid(errors) => errors.first().map(|error| error.location.as_str()),
            Self::NoSuchModel { .. } => Some("model"),
            Self::PromptTooLong { .. } => Some("input_text"),
            _ => None,
        }
    }
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: u16,
}

/// What is wrong with one field of a body, in the words of vLLM's validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldError {
    /// For example `missing`.
    pub(super) kind: &'static str,
    /// For example `body.lora_name`.
    pub(super) location: String,
    /// For example `Field required`.
    pub(super) message: &'static str,
    /// What was given, as Python shows it.
    pub(super) input: String,
    /// What the JSON decoder said.
    pub(super) context: Option<&'static str>,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, location, message, input, context } = self;
        write!(f, "\n  {{'type': '{kind}', 'loc': '{location}', 'msg': '{message}', 'input': '{input}'")?;
        if let Some(error) = context {
            write!(f, ", 'ctx': {{'error': '{error}'}}")?;
        }
        f.write_str("}")
    }
}

fn validation_text(errors: &[FieldError]) -> String {
    let plural = if errors.len() == 1 { "" } else { "s" };
    let details: String = errors.iter().map(FieldError::to_string).collect();
    format!("{} validation error{plural}:{details}", errors.len())
}
