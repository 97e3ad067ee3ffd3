//! Parses completion requests: the fields that the simulator uses, and the length of the prompt.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::response::CompletionKind;
use super::validation;
use super::vllm_error::VllmError;

/// Parameters of a completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CompletionRequest {
    /// `None` for the base model.
    pub(super) model: Option<String>,
    pub(super) prompt: PromptLength,
    pub(super) max_tokens: Option<i64>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

/// Length of a prompt, including the chat template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PromptLength {
    pub(super) characters: usize,
    pub(super) tokens: usize,
}

impl PromptLength {
    /// Counts three characters a token: exact for the words of the recording, and close enough for others.
    fn of(text: &str) -> Self {
        let characters = text.chars().count();
        Self { characters, tokens: characters.div_ceil(3) }
    }

    fn and(self, Self { characters, tokens }: Self) -> Self {
        Self { characters: self.characters + characters, tokens: self.tokens + tokens }
    }
}

/// Length of what the recorded model's chat template adds around all messages.
const CHAT_TEMPLATE_LENGTH: PromptLength = PromptLength { characters: "<s><|assistant|>".len(), tokens: 2 };

#[derive(Deserialize)]
struct CompletionFields<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    messages: Option<Vec<ChatMessage<'a>>>,
    prompt: Option<Value>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct ChatMessage<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<MessageContent<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MessageContent<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Parts(Vec<Value>),
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl CompletionRequest {
    /// Parses the body of `/v1/chat/completions` or `/v1/completions`.
    pub(super) fn read(kind: CompletionKind, body: &Bytes) -> Result<Self, VllmError> {
        let Ok(fields) = serde_json::from_slice::<CompletionFields<'_>>(body) else {
            return Err(validation::completion_errors(body));
        };
        let prompt = match (kind, fields.messages.as_deref(), fields.prompt.as_ref()) {
            (CompletionKind::Chat, None, _) => return Err(validation::completion_errors(body)),
            (CompletionKind::Chat, Some([]), _) => return Err(VllmError::NoMessage),
            (CompletionKind::Chat, Some(messages), _) => chat_length(messages),
            (CompletionKind::Text, _, None) => return Err(VllmError::NoPrompt),
            (CompletionKind::Text, _, Some(Value::String(text))) if text.is_empty() => return Err(VllmError::NoPrompt),
            (CompletionKind::Text, _, Some(Value::Array(parts))) if parts.is_empty() => {
                return Err(VllmError::NoPromptInList);
            }
            (CompletionKind::Text, _, Some(prompt)) => prompt_length(prompt),
        };
        Ok(Self {
            model: fields.model.filter(|model| !model.is_empty()).map(Cow::into_owned),
            prompt,
            max_tokens: fields.max_completion_tokens.or(fields.max_tokens),
            stream: fields.stream.unwrap_or(false),
            include_usage: fields.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        })
    }
}

fn chat_length(messages: &[ChatMessage<'_>]) -> PromptLength {
    messages.iter().map(message_length).fold(CHAT_TEMPLATE_LENGTH, PromptLength::and)
}

fn message_length(ChatMessage { role, content }: &ChatMessage<'_>) -> PromptLength {
    let frame = PromptLength { characters: "<||></s>".len() + role.len(), tokens: 2 };
    frame.and(match content {
        Some(MessageContent::Text(text)) => PromptLength::of(text),
        Some(MessageContent::Parts(parts)) => {
            parts.iter().map(part_length).fold(PromptLength::default(), PromptLength::and)
        }
        None => PromptLength::default(),
    })
}

fn part_length(part: &Value) -> PromptLength {
    part.get("text").and_then(Value::as_str).map(PromptLength::of).unwrap_or_default()
}

/// Length of a text, of several texts, or of token ids.
fn prompt_length(prompt: &Value) -> PromptLength {
    match prompt {
        Value::String(text) => PromptLength::of(text),
        Value::Array(parts) => parts.iter().map(prompt_length).fold(PromptLength::default(), PromptLength::and),
        _ => PromptLength { characters: 0, tokens: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: CompletionKind, body: &'static str) -> CompletionRequest {
        CompletionRequest::read(kind, &Bytes::from_static(body.as_bytes())).expect("a valid request")
    }

    #[test]
    fn prompt_lengths_match_the_recording() {
        let chat = read(CompletionKind::Chat, r#"{"messages": [{"role": "user", "content": "hello"}]}"#);
        assert_eq!(chat.prompt, PromptLength { characters: 33, tokens: 6 });
        let parts = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}"#;
        assert_eq!(read(CompletionKind::Chat, parts).prompt, chat.prompt);
        assert_eq!(read(CompletionKind::Text, r#"{"prompt": "hello"}"#).prompt.tokens, 2);
        assert_eq!(read(CompletionKind::Text, r#"{"prompt": [5, 6, 7]}"#).prompt.tokens, 3);
    }

    #[test]
    fn max_completion_tokens_takes_precedence() {
        let request =
            read(CompletionKind::Text, r#"{"prompt": "x", "max_tokens": 5, "max_completion_tokens": 7, "model": ""}"#);
        assert_eq!((request.max_tokens, request.model), (Some(7), None));
    }
}
