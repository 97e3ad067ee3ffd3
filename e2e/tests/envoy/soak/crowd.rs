//! The clients.

use super::{
    ledger::Ledger,
    models::{ALIASES, EVENTS, Shape},
    now,
};
use crate::clients::{Body, Client, Framing, Version, post};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const CLIENTS: u64 = 32;
/// Longer than Envoy waits for a reply.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Crowd {
    clients: JoinSet<()>,
    enough: CancellationToken,
}

impl Crowd {
    /// Each client sends one request after the other.
    pub(super) fn start(gateway: SocketAddr, ledger: &Arc<Ledger>, seed: u64) -> Self {
        let (mut clients, enough) = (JoinSet::new(), CancellationToken::new());
        for number in 0..CLIENTS {
            let (ledger, random) = (Arc::clone(ledger), StdRng::seed_from_u64(seed ^ (number << 32)));
            let version = if number % 4 == 0 { Version::Two } else { Version::One };
            let mut one = One { gateway, version, connection: None, ledger, random };
            let enough = enough.clone();
            clients.spawn(async move {
                while !enough.is_cancelled() {
                    one.ask(one.ledger.next()).await;
                }
            });
        }
        Self { clients, enough }
    }

    /// Lets every client end the request that it is in.
    pub(super) async fn end(mut self) {
        self.enough.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

struct One {
    gateway: SocketAddr,
    version: Version,
    connection: Option<Client>,
    ledger: Arc<Ledger>,
    random: StdRng,
}

/// What is asked, and what has to come.
struct Question {
    alias: &'static str,
    number: u64,
    streams: bool,
    request: Request<Body>,
}

/// How it ended without a whole and right answer.
enum Wrong {
    /// Before the response's headers, or after them.
    Lost { before_head: bool, words: String },
    /// With another answer than there is for it.
    Untrue(String),
}

impl One {
    async fn ask(&mut self, number: u64) {
        let gives_up =
            self.random.random_ratio(1, 40).then(|| Duration::from_micros(self.random.random_range(0..8000)));
        let mut connection = self.connection().await;
        let start = now();
        let question = self.question(number, self.ledger.nanos(start));
        let streams = question.streams;
        let ended = tokio::time::timeout(gives_up.unwrap_or(PATIENCE), question.ask(&mut connection)).await;
        match ended {
            Err(_) if gives_up.is_some() => {
                self.ledger.gave_up();
                // In HTTP/1.1 that is the end of the connection; in HTTP/2 one stream is reset, most of the time.
                if self.version == Version::One || self.random.random_ratio(1, 4) {
                    return;
                }
            }
            Err(_) => self.ledger.failed(start, now(), true, format!("no answer after {PATIENCE:?}")),
            Ok(Ok(())) => self.ledger.answer(streams),
            Ok(Err(Wrong::Lost { before_head, words })) => self.ledger.failed(start, now(), before_head, words),
            Ok(Err(Wrong::Untrue(words))) => self.ledger.wrong(words),
        }
        self.connection = Some(connection);
    }

    async fn connection(&mut self) -> Client {
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            return connection;
        }
        Client::connect(self.gateway, self.version).await
    }

    fn question(&mut self, number: u64, start: u64) -> Question {
        let random = &mut self.random;
        let alias = ALIASES[random.random_range(0..ALIASES.len())];
        let streams = random.random_ratio(1, 150);
        let padding =
            if random.random_ratio(1, 50) { random.random_range(0..60_000) } else { random.random_range(0..400) };
        let shape = Shape { number, padding, model_last: random.random_bool(0.7) };
        let framing = if random.random_bool(0.5) { Framing::Sized } else { Framing::Chunked };
        let [number_text, start, padding] = [number, start, padding as u64].map(|it| it.to_string());
        let headers = [
            ("x-number", number_text.as_str()),
            ("x-start", &start),
            ("x-padding", &padding),
            ("x-model-last", if shape.model_last { "1" } else { "0" }),
            ("x-alias", alias),
        ];
        let path = if streams { "/v1/responses" } else { "/v1/chat/completions" };
        let request = post(path, &headers, &shape.body(alias), framing);
        Question { alias, number, streams, request }
    }
}

impl Question {
    async fn ask(self, connection: &mut Client) -> Result<(), Wrong> {
        let Self { alias, number, streams, request } = self;
        let lost = |before_head, words| Wrong::Lost { before_head, words };
        let answer = connection.begin(request).await.map_err(|error| lost(true, format!("{error:?}")))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await;
        if head.status != StatusCode::OK {
            let words = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
            return Err(lost(true, format!("{} {words:?}", head.status)));
        }
        let body = body.map_err(|error| lost(false, format!("cut, streams: {streams}: {error:?}")))?.to_bytes();
        let told = head.headers.get("x-rollora-target").map(|told| told.to_str().unwrap_or("?").to_owned());
        if told.is_none() && alias != "plain" {
            return Err(Wrong::Untrue(format!("{alias} was told no target")));
        }
        let model = told.as_deref().unwrap_or(alias);
        let expected = if streams {
            let events = (1..=EVENTS).map(|event| format!("data: {model} {number} {event}\n\n"));
            events.collect::<Vec<_>>().concat()
        } else {
            format!("{model} {number}")
        };
        if body == expected {
            Ok(())
        } else {
            let body = String::from_utf8_lossy(&body);
            Err(Wrong::Untrue(format!("{alias} {number} was told {told:?} and answered {body:?}")))
        }
    }
}
