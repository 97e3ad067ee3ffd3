//! Completions, whole and streamed.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde_json::Value;

use super::adapters::{Adapter, Weights};
use super::clock;
use super::knobs::{Death, Knobs};
use super::refusal::Refusal;
use super::reply::{self, Kind, Made, Tokens};
use super::request::{CompletionRequest, Length};
use super::server::Server;

/// vLLM's bound on how many characters a token can stand for, with the recorded tokenizer.
const MOST_CHARACTERS_A_TOKEN: usize = 13;

/// How much is said when the request does not bound it: vLLM's bound of a text completion, and here of a chat, too.
const UNBOUNDED_ANSWER: usize = 16;

/// The end of a stream.
const DONE: &str = "data: [DONE]\n\n";

/// A completion that the server is busy with. Dropping it, as when the client goes away, ends it.
#[derive(Debug)]
pub(super) struct Generation {
    server: Arc<Server>,
    kind: Kind,
    made: Made,
    model: String,
    /// None for the base model.
    weights: Option<Arc<Weights>>,
    tokens: Tokens,
    finish: &'static str,
    include_usage: bool,
}

impl Generation {
    /// Begins what was asked for, or refuses it.
    pub(super) async fn begin(server: &Arc<Server>, kind: Kind, request: CompletionRequest) -> Result<Self, Refusal> {
        let model = request.model.unwrap_or_else(|| server.config.served_model_name.clone());
        let single_token = request.max_tokens.is_some_and(|tokens| tokens <= 1);
        server.ledger().completion(&model, single_token, request.stream, clock::now());
        let weights = admit(server, &model, request.prompt, request.max_tokens)
            .await
            .inspect_err(|_| server.ledger().refused(&model, clock::now()))?;
        // vLLM cuts what does not fit behind the prompt, and says so only by the reason for which it finished.
        let room = server.config.max_model_len.saturating_sub(request.prompt.tokens).max(1);
        let (said, finish) = match (request.max_tokens.map(usize::try_from), kind) {
            (Some(asked), _) => (asked.unwrap_or(room).min(room), "length"),
            (None, Kind::Chat) => (UNBOUNDED_ANSWER.min(room), "stop"),
            (None, Kind::Text) => (UNBOUNDED_ANSWER.min(room), "length"),
        };
        let generation = Self {
            server: Arc::clone(server),
            kind,
            made: server.made(),
            model,
            weights,
            tokens: Tokens { prompt: request.prompt.tokens, said },
            finish,
            include_usage: request.include_usage,
        };
        server.usage().begin(generation.adapter(), said, clock::unix_now());
        Ok(generation)
    }

    /// Says everything, then answers.
    pub(super) async fn whole(self) -> Result<Value, Refusal> {
        let mut text = String::new();
        for index in 0..self.tokens.said {
            text.extend(self.token(index).await?);
        }
        self.succeeded();
        Ok(reply::completion(self.kind, &self.made, &self.model, &text, self.finish, self.tokens))
    }

    /// Answers token by token. When the engine dies, the stream says so in an event and ends as if it were whole.
    pub(super) fn stream(self) -> impl Stream<Item = Bytes> + Send {
        let first = match self.kind {
            Kind::Chat => Event::Role,
            Kind::Text => Event::Token(0),
        };
        stream::unfold((self, Some(first)), |(generation, event)| async move {
            let event = event?;
            let (data, next) = match generation.data(event).await {
                Ok(data) => (data, generation.after(event)),
                Err(refusal) => (Bytes::from(refusal.event() + DONE), None),
            };
            Some((data, (generation, next)))
        })
    }

    async fn data(&self, event: Event) -> Result<Bytes, Refusal> {
        let Self { kind, made, model, tokens, .. } = self;
        let chunk = match event {
            Event::Role => reply::role_chunk(made, model),
            Event::Token(index) => {
                let text: String = self.token(index).await?.collect();
                let finish = (index + 1 == tokens.said).then_some(self.finish);
                let chunk = reply::token_chunk(*kind, made, model, &text, finish);
                if finish.is_some() && !self.include_usage { reply::with_fingerprint(chunk) } else { chunk }
            }
            Event::Usage => reply::usage_chunk(*kind, made, model, *tokens),
            Event::Done => {
                self.succeeded();
                return Ok(Bytes::from_static(DONE.as_bytes()));
            }
        };
        Ok(Bytes::from(format!("data: {chunk}\n\n")))
    }

    fn after(&self, event: Event) -> Option<Event> {
        match event {
            Event::Role => Some(Event::Token(0)),
            Event::Token(index) if index + 1 < self.tokens.said => Some(Event::Token(index + 1)),
            Event::Token(_) if self.include_usage => Some(Event::Usage),
            Event::Token(_) | Event::Usage => Some(Event::Done),
            Event::Done => None,
        }
    }

    /// Takes the time of a token, then says it with the weights of this moment.
    async fn token(&self, index: usize) -> Result<impl Iterator<Item = &'static str>, Refusal> {
        let time = self.server.knob(Knobs::token_time);
        self.server.work(time).await?;
        if !time.is_zero() {
            self.server.usage().step(clock::unix_now());
        }
        let voice = self.weights.as_ref().map_or(self.server.base, |weights| weights.voice());
        Ok(voice.token(index))
    }

    fn succeeded(&self) {
        self.server.usage().succeeded(self.finish == "stop", self.tokens.prompt, self.tokens.said);
    }

    fn adapter(&self) -> Option<&str> {
        self.weights.as_ref().map(|_| self.model.as_str())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.server.usage().end(self.adapter(), self.tokens.said, clock::unix_now());
    }
}

/// What a stream sends next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Role,
    Token(usize),
    Usage,
    Done,
}

/// The weights to answer with; none for the base model.
async fn admit(
    server: &Server,
    model: &str,
    prompt: Length,
    max_tokens: Option<i64>,
) -> Result<Option<Arc<Weights>>, Refusal> {
    let base = &server.config.served_model_name;
    let adapter = if model == base { None } else { server.adapters().get(model).cloned() };
    if adapter.is_none() && model != base {
        return Err(Refusal::NoSuchModel { model: model.to_owned(), base: base.clone() });
    }
    check_lengths(server.config.max_model_len, prompt, max_tokens)?;
    server.until_engine_works().await?;
    if let Some(death) = server.knob(|knobs| knobs.deadly_use.get(model).copied()) {
        return Err(server.die(death, format!("the use of {model:?} ends the server")).await);
    }
    match adapter {
        Some(adapter) => hold(server, adapter).await.map(Some),
        None => Ok(None),
    }
}

fn check_lengths(limit: usize, prompt: Length, max_tokens: Option<i64>) -> Result<(), Refusal> {
    let most = limit * MOST_CHARACTERS_A_TOKEN;
    if prompt.characters > most {
        return Err(Refusal::PromptTooLong { limit, characters: prompt.characters, most });
    }
    if prompt.tokens > limit {
        return Err(Refusal::TooManyPromptTokens { limit, least: limit + 1 });
    }
    match max_tokens {
        Some(asked @ ..=0) => Err(Refusal::TooFewTokens(asked)),
        Some(asked) if usize::try_from(asked).is_ok_and(|asked| asked > limit) => {
            Err(Refusal::TooManyTokens { asked, limit })
        }
        _ => Ok(()),
    }
}

/// Makes the worker hold an adapter's weights. When it has to read them again and cannot, the engine dies.
async fn hold(server: &Server, adapter: Adapter) -> Result<Arc<Weights>, Refusal> {
    let Adapter { name, source, weights } = adapter;
    if !server.adapters().holds(&weights) {
        match server.judge.judge(&source) {
            Ok(voice) => weights.replace(voice),
            Err(bad) => {
                let reason = format!("the worker had forgotten {name:?} and could not read it again: {bad}");
                return Err(server.die(Death::Engine, reason).await);
            }
        }
    }
    server.adapters().hold(&weights);
    Ok(weights)
}
