//! Error responses, with vLLM's status, text and shape.
//!
//! There are four shapes: vLLM's own error object, `{"detail"}` from its web framework, `{"error": "Unauthorized"}`
//! from its check of the API key, and the validation errors of [`ValidationError`], which are an error object too.

use std::fmt;

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::sanitize::without_paths;

/// An error response; its `Display` text is vLLM's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum VllmError {
    #[error("Not Found")]
    PathNotFound,
    #[error("Method Not Allowed")]
    MethodNotAllowed,
    #[error("Unauthorized")]
    Unauthorized,
    #[error("1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed")]
    UnsupportedMediaType,
    #[error("{}", validation_text(.0))]
    InvalidFields(Vec<ValidationError>),
    #[error("Both 'lora_name' and 'lora_path' must be provided.")]
    EmptyLoadField,
    #[error("{0}")]
    InvalidAdapter(String),
    #[error("'lora_name' needs to be provided to unload a LoRA adapter.")]
    EmptyUnloadName,
    #[error("The lora adapter '{0}' conflicts with a served base model.")]
    BaseModelName(String),
    #[error(
        "The lora adapter '{0}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' \
         to True."
    )]
    AlreadyLoaded(String),
    #[error("Loading lora {name} failed: No adapter found for {source_shown}")]
    AdapterNotFound { name: String, source_shown: String },
    #[error(
        "Call to add_lora method failed: Worker failed with error '{0}', please check the stack trace above for the \
         root cause"
    )]
    WorkerFailed(String),
    #[error("The lora adapter '{0}' cannot be found.")]
    NotLoaded(String),
    #[error("The model `{model}` does not exist. Valid aliases: {base}.")]
    ModelNotFound { model: String, base: String },
    #[error(
        "This model's maximum context length is {limit} tokens. However, your prompt contains {characters} characters \
         (more than {most} characters, which is the upper bound for {limit} input tokens). Please reduce the length \
         of the input prompt. (parameter=input_text, value={characters})"
    )]
    PromptTooLong { limit: usize, characters: usize, most: usize },
    #[error(
        "This model's maximum context length is {limit} tokens. However, your prompt contains at least {least} input \
         tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input \
         prompt. (parameter=input_tokens, value={least})"
    )]
    TooManyPromptTokens { limit: usize, least: usize },
    #[error("max_tokens must be at least 1, got {0}. (parameter=max_tokens, value={0})")]
    MaxTokensTooSmall(i64),
    #[error(
        "max_tokens={asked} cannot be greater than max_model_len={limit}. Please request fewer output tokens. \
         (parameter=max_tokens, value={asked})"
    )]
    MaxTokensTooLarge { asked: i64, limit: usize },
    #[error("Cannot apply chat template to an empty conversation. Provide at least one message.")]
    NoMessage,
    #[error("Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)")]
    NoPrompt,
    #[error("You must pass at least one prompt")]
    NoPromptInList,
    #[error("EngineCore encountered an issue. See stack trace (above) for the root cause.")]
    EngineDead,
    #[error("cannot schedule new futures after shutdown")]
    ShuttingDown,
}

impl VllmError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::PathNotFound | Self::AdapterNotFound { .. } | Self::NotLoaded(_) | Self::ModelNotFound { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::WorkerFailed(_) | Self::EngineDead | Self::ShuttingDown => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Returns the JSON body of the response.
    pub(super) fn body(&self) -> Value {
        let message = self.to_string();
        match self {
            Self::PathNotFound | Self::MethodNotAllowed => json!({ "detail": message }),
            Self::Unauthorized => json!({ "error": message }),
            _ => json!({ "error": ErrorObject {
                message: without_paths(&message),
                kind: self.error_type(),
                param: self.param(),
                code: self.status().as_u16(),
            }}),
        }
    }

    /// Returns the event that ends a stream if the error occurs in the middle. Its spacing is Python's, unlike a
    /// body's.
    pub(super) fn event(&self) -> String {
        let (message, code) = (Value::from(self.to_string()), self.status().as_u16());
        format!(
            "data: {{\"error\": {{\"message\": {message}, \"type\": \"{}\", \"param\": null, \"code\": {code}}}}}\n\n",
            self.error_type()
        )
    }

    fn error_type(&self) -> &'static str {
        match self {
            Self::UnsupportedMediaType | Self::InvalidFields(_) | Self::InvalidAdapter(_) => "Bad Request",
            Self::EmptyLoadField | Self::EmptyUnloadName | Self::BaseModelName(_) | Self::AlreadyLoaded(_) => {
                "InvalidUserInput"
            }
            _ if self.status() == StatusCode::NOT_FOUND => "NotFoundError",
            _ if self.status() == StatusCode::BAD_REQUEST => "BadRequestError",
            _ => "InternalServerError",
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::InvalidFields(errors) => errors.first().map(|error| error.location.as_str()),
            Self::ModelNotFound { .. } => Some("model"),
            Self::PromptTooLong { .. } => Some("input_text"),
            Self::TooManyPromptTokens { .. } => Some("input_tokens"),
            Self::MaxTokensTooSmall(_) | Self::MaxTokensTooLarge { .. } => Some("max_tokens"),
            Self::NoPrompt => Some("prompt"),
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

/// A validation error of one field, in the format of vLLM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ValidationError {
    /// Pydantic's error type, such as `missing`.
    pub(super) kind: &'static str,
    /// Path of the field, such as `body.lora_name`.
    pub(super) location: String,
    /// Pydantic's message, such as `Field required`.
    pub(super) message: &'static str,
    /// The given value, as Python displays it.
    pub(super) input: String,
    /// The message of the JSON decoder.
    pub(super) context: Option<&'static str>,
}

impl fmt::Display for ValidationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, location, message, input, context } = self;
        let input = python_quoted(input);
        write!(f, "\n  {{'type': '{kind}', 'loc': '{location}', 'msg': '{message}', 'input': {input}")?;
        if let Some(error) = context {
            write!(f, ", 'ctx': {{'error': {}}}", python_quoted(error))?;
        }
        f.write_str("}")
    }
}

/// Quotes a text as Python does.
fn python_quoted(text: &str) -> String {
    if text.contains('\'') && !text.contains('"') { format!("\"{text}\"") } else { format!("'{text}'") }
}

fn validation_text(errors: &[ValidationError]) -> String {
    let plural = if errors.len() == 1 { "" } else { "s" };
    let details: String = errors.iter().map(ValidationError::to_string).collect();
    format!("{} validation error{plural}:{details}", errors.len())
}
