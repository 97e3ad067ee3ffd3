//! Completions, complete and streamed.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde_json::Value;

use super::adapters::{LoadedAdapter, LoadedWeights};
use super::clock;
use super::knobs::{CrashMode, Knobs};
use super::request::{CompletionRequest, PromptLength};
use super::response::{self, CompletionKind, ResponseMeta, TokenCounts};
use super::server::SimulatedServer;
use super::vllm_error::VllmError;

/// vLLM's upper bound of the characters in a token, for the recorded tokenizer.
const MAX_CHARACTERS_PER_TOKEN: usize = 13;

/// Completion length if the request sets none: vLLM's default for text completions, used for chats too.
const DEFAULT_MAX_TOKENS: usize = 16;

const DONE: &str = "data: [DONE]\n\n";

/// A completion in progress. Dropping it, as happens when the client disconnects, aborts it.
#[derive(Debug)]
pub(super) struct Generation {
    server: Arc<SimulatedServer>,
    kind: CompletionKind,
    meta: ResponseMeta,
    model: String,
    /// `None` for the base model.
    weights: Option<Arc<LoadedWeights>>,
    tokens: TokenCounts,
    finish: &'static str,
    include_usage: bool,
}

impl Generation {
    /// Starts a completion, or rejects the request.
    pub(super) async fn start(
        server: &Arc<SimulatedServer>,
        kind: CompletionKind,
        request: CompletionRequest,
    ) -> Result<Self, VllmError> {
        let model = request.model.unwrap_or_else(|| server.config.served_model_name.clone());
        let single_token = request.max_tokens.is_some_and(|tokens| tokens <= 1);
        server.request_log().record_completion(&model, single_token, request.stream, clock::now());
        let weights = admit(server, &model, request.prompt, request.max_tokens)
            .await
            .inspect_err(|_| server.request_log().record_refused(&model, clock::now()))?;
        // vLLM truncates a completion that does not fit after the prompt; only the finish reason tells.
        let capacity = server.config.max_model_len.saturating_sub(request.prompt.tokens).max(1);
        let (generated, finish) = match (request.max_tokens.map(usize::try_from), kind) {
            (Some(asked), _) => (asked.unwrap_or(capacity).min(capacity), "length"),
            (None, CompletionKind::Chat) => (DEFAULT_MAX_TOKENS.min(capacity), "stop"),
            (None, CompletionKind::Text) => (DEFAULT_MAX_TOKENS.min(capacity), "length"),
        };
        let generation = Self {
            server: Arc::clone(server),
            kind,
            meta: server.response_meta(),
            model,
            weights,
            tokens: TokenCounts { prompt: request.prompt.tokens, generated },
            finish,
            include_usage: request.include_usage,
        };
        server.metrics().request_started(generation.adapter(), generated, clock::unix_now());
        Ok(generation)
    }

    /// Generates all tokens and returns the response.
    pub(super) async fn complete(self) -> Result<Value, VllmError> {
        let mut text = String::new();
        for index in 0..self.tokens.generated {
            text.extend(self.generate_token(index).await?);
        }
        self.record_success();
        Ok(response::completion_response(self.kind, &self.meta, &self.model, &text, self.finish, self.tokens))
    }

    /// Streams token by token. If the engine fails, the stream gets an error event and then ends normally.
    pub(super) fn stream(self) -> impl Stream<Item = Bytes> + Send {
        let first = match self.kind {
            CompletionKind::Chat => StreamEvent::Role,
            CompletionKind::Text => StreamEvent::Token(0),
        };
        stream::unfold((self, Some(first)), |(generation, event)| async move {
            let event = event?;
            let (data, next) = match generation.event_data(event).await {
                Ok(data) => (data, generation.next_event(event)),
                Err(refusal) => (Bytes::from(refusal.event() + DONE), None),
            };
            Some((data, (generation, next)))
        })
    }

    async fn event_data(&self, event: StreamEvent) -> Result<Bytes, VllmError> {
        let Self { kind, meta, model, tokens, .. } = self;
        let chunk = match event {
            StreamEvent::Role => response::role_chunk(meta, model),
            StreamEvent::Token(index) => {
                let text: String = self.generate_token(index).await?.collect();
                let finish = (index + 1 == tokens.generated).then_some(self.finish);
                let chunk = response::token_chunk(*kind, meta, model, &text, finish);
                if finish.is_some() && !self.include_usage { response::with_fingerprint(chunk) } else { chunk }
            }
            StreamEvent::Usage => response::usage_chunk(*kind, meta, model, *tokens),
            StreamEvent::Done => {
                self.record_success();
                return Ok(Bytes::from_static(DONE.as_bytes()));
            }
        };
        Ok(Bytes::from(format!("data: {chunk}\n\n")))
    }

    fn next_event(&self, event: StreamEvent) -> Option<StreamEvent> {
        match event {
            StreamEvent::Role => Some(StreamEvent::Token(0)),
            StreamEvent::Token(index) if index + 1 < self.tokens.generated => Some(StreamEvent::Token(index + 1)),
            StreamEvent::Token(_) if self.include_usage => Some(StreamEvent::Usage),
            StreamEvent::Token(_) | StreamEvent::Usage => Some(StreamEvent::Done),
            StreamEvent::Done => None,
        }
    }

    /// Waits for the duration of one token, then generates it with the current weights.
    async fn generate_token(&self, index: usize) -> Result<impl Iterator<Item = &'static str>, VllmError> {
        let time = self.server.read_knobs(Knobs::token_time);
        self.server.spend_engine_time(time).await?;
        if !time.is_zero() {
            self.server.metrics().token_generated(clock::unix_now());
        }
        let generator = self.weights.as_ref().map_or(self.server.base_text, |weights| weights.text());
        Ok(generator.token(index))
    }

    fn record_success(&self) {
        self.server.metrics().request_succeeded(self.finish == "stop", self.tokens.prompt, self.tokens.generated);
    }

    fn adapter(&self) -> Option<&str> {
        self.weights.as_ref().map(|_| self.model.as_str())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.server.metrics().request_ended(self.adapter(), self.tokens.generated, clock::unix_now());
    }
}

/// The next event of a stream.
#[derive(Clone, Copy, Debug)]
enum StreamEvent {
    Role,
    Token(usize),
    Usage,
    Done,
}

/// Returns the weights to generate with; `None` for the base model.
async fn admit(
    server: &SimulatedServer,
    model: &str,
    prompt: PromptLength,
    max_tokens: Option<i64>,
) -> Result<Option<Arc<LoadedWeights>>, VllmError> {
    let base = &server.config.served_model_name;
    let adapter = if model == base { None } else { server.adapters().get(model).cloned() };
    if adapter.is_none() && model != base {
        return Err(VllmError::ModelNotFound { model: model.to_owned(), base: base.clone() });
    }
    check_lengths(server.config.max_model_len, prompt, max_tokens)?;
    server.wait_for_engine().await?;
    if let Some(crash_mode) = server.read_knobs(|knobs| knobs.deadly_use.get(model).copied()) {
        return Err(server.crash_with(crash_mode, format!("using {model:?} crashes the server")).await);
    }
    match adapter {
        Some(adapter) => ensure_cached(server, adapter).await.map(Some),
        None => Ok(None),
    }
}

fn check_lengths(limit: usize, prompt: PromptLength, max_tokens: Option<i64>) -> Result<(), VllmError> {
    let most = limit * MAX_CHARACTERS_PER_TOKEN;
    if prompt.characters > most {
        return Err(VllmError::PromptTooLong { limit, characters: prompt.characters, most });
    }
    if prompt.tokens > limit {
        return Err(VllmError::TooManyPromptTokens { limit, least: limit + 1 });
    }
    match max_tokens {
        Some(asked @ ..=0) => Err(VllmError::MaxTokensTooSmall(asked)),
        Some(asked) if usize::try_from(asked).is_ok_and(|asked| asked > limit) => {
            Err(VllmError::MaxTokensTooLarge { asked, limit })
        }
        _ => Ok(()),
    }
}

/// Loads an adapter's weights into the worker's cache. If they cannot be read again, the engine crashes.
async fn ensure_cached(server: &SimulatedServer, adapter: LoadedAdapter) -> Result<Arc<LoadedWeights>, VllmError> {
    let LoadedAdapter { name, source, weights } = adapter;
    if !server.adapters().is_cached(&weights) {
        match server.source_validator.validate(&source) {
            Ok(generator) => weights.replace(generator),
            Err(bad) => {
                let reason = format!("the worker had evicted {name:?} and could not read it again: {bad}");
                return Err(server.crash_with(CrashMode::Engine, reason).await);
            }
        }
    }
    server.adapters().mark_used(&weights);
    Ok(weights)
}
