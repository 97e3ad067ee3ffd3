//! Completions, whole and streamed.

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

/// vLLM's bound on how many characters a token can stand for, with the recorded tokenizer.
const MAX_CHARACTERS_PER_TOKEN: usize = 13;

/// How much is said when the request does not bound it: vLLM's bound of a text completion, and here of a chat, too.
const DEFAULT_MAX_TOKENS: usize = 16;

/// The end of a stream.
const DONE: &str = "data: [DONE]\n\n";

/// A completion that the server is busy with. Dropping it, as when the client goes away, ends it.
#[derive(Debug)]
pub(super) struct Generation {
    server: Arc<SimulatedServer>,
    kind: CompletionKind,
    meta: ResponseMeta,
    model: String,
    /// None for the base model.
    weights: Option<Arc<LoadedWeights>>,
    tokens: TokenCounts,
    finish: &'static str,
    include_usage: bool,
}

impl Generation {
    /// Begins what was asked for, or refuses it.
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
        // vLLM cuts what does not fit behind the prompt, and says so only by the reason for which it finished.
        let room = server.config.max_model_len.saturating_sub(request.prompt.tokens).max(1);
        let (said, finish) = match (request.max_tokens.map(usize::try_from), kind) {
            (Some(asked), _) => (asked.unwrap_or(room).min(room), "length"),
            (None, CompletionKind::Chat) => (DEFAULT_MAX_TOKENS.min(room), "stop"),
            (None, CompletionKind::Text) => (DEFAULT_MAX_TOKENS.min(room), "length"),
        };
        let generation = Self {
            server: Arc::clone(server),
            kind,
            meta: server.response_meta(),
            model,
            weights,
            tokens: TokenCounts { prompt: request.prompt.tokens, generated: said },
            finish,
            include_usage: request.include_usage,
        };
        server.metrics().request_started(generation.adapter(), said, clock::unix_now());
        Ok(generation)
    }

    /// Says everything, then answers.
    pub(super) async fn complete(self) -> Result<Value, VllmError> {
        let mut text = String::new();
        for index in 0..self.tokens.generated {
            text.extend(self.generate_token(index).await?);
        }
        self.record_success();
        Ok(response::completion_response(self.kind, &self.meta, &self.model, &text, self.finish, self.tokens))
    }

    /// Answers token by token. When the engine dies, the stream says so in an event and ends as if it were whole.
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
        let Self { kind, meta: made, model, tokens, .. } = self;
        let chunk = match event {
            StreamEvent::Role => response::role_chunk(made, model),
            StreamEvent::Token(index) => {
                let text: String = self.generate_token(index).await?.collect();
                let finish = (index + 1 == tokens.generated).then_some(self.finish);
                let chunk = response::token_chunk(*kind, made, model, &text, finish);
                if finish.is_some() && !self.include_usage { response::with_fingerprint(chunk) } else { chunk }
            }
            StreamEvent::Usage => response::usage_chunk(*kind, made, model, *tokens),
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

    /// Takes the time of a token, then says it with the weights of this moment.
    async fn generate_token(&self, index: usize) -> Result<impl Iterator<Item = &'static str>, VllmError> {
        let time = self.server.read_knobs(Knobs::token_time);
        self.server.spend_engine_time(time).await?;
        if !time.is_zero() {
            self.server.metrics().token_generated(clock::unix_now());
        }
        let voice = self.weights.as_ref().map_or(self.server.base_text, |weights| weights.text());
        Ok(voice.token(index))
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

/// What a stream sends next.
#[derive(Clone, Copy, Debug)]
enum StreamEvent {
    Role,
    Token(usize),
    Usage,
    Done,
}

/// The weights to answer with; none for the base model.
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
    if let Some(death) = server.read_knobs(|knobs| knobs.deadly_use.get(model).copied()) {
        return Err(server.crash_with(death, format!("the use of {model:?} ends the server")).await);
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

/// Makes the worker hold an adapter's weights. When it has to read them again and cannot, the engine dies.
async fn ensure_cached(server: &SimulatedServer, adapter: LoadedAdapter) -> Result<Arc<LoadedWeights>, VllmError> {
    let LoadedAdapter { name, source, weights } = adapter;
    if !server.adapters().is_cached(&weights) {
        match server.source_validator.validate(&source) {
            Ok(voice) => weights.replace(voice),
            Err(bad) => {
                let reason = format!("the worker had forgotten {name:?} and could not read it again: {bad}");
                return Err(server.crash_with(CrashMode::Engine, reason).await);
            }
        }
    }
    server.adapters().mark_used(&weights);
    Ok(weights)
}
