//! The clients of the soak.

use super::{
    ledger::SoakLedger,
    model_server::{ALIASES, EVENT_COUNT, RequestShape},
    now,
};
use crate::clients::{Framing, GatewayClient, HttpVersion, RequestBody, post};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const CLIENT_COUNT: u64 = 32;
/// Longer than Envoy waits for a reply.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct SoakLoad {
    clients: JoinSet<()>,
    stop: CancellationToken,
}

impl SoakLoad {
    /// Starts the clients; each sends one request after another.
    pub(super) fn start(gateway: SocketAddr, ledger: &Arc<SoakLedger>, seed: u64) -> Self {
        let (mut clients, stop) = (JoinSet::new(), CancellationToken::new());
        for number in 0..CLIENT_COUNT {
            let (ledger, random) = (Arc::clone(ledger), StdRng::seed_from_u64(seed ^ (number << 32)));
            let version = if number % 4 == 0 { HttpVersion::Http2 } else { HttpVersion::Http1 };
            let mut client = SoakClient { gateway, version, connection: None, ledger, random };
            let stop = stop.clone();
            clients.spawn(async move {
                while !stop.is_cancelled() {
                    client.send_next(client.ledger.next_number()).await;
                }
            });
        }
        Self { clients, stop }
    }

    /// Lets every client finish its current request.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

struct SoakClient {
    gateway: SocketAddr,
    version: HttpVersion,
    connection: Option<GatewayClient>,
    ledger: Arc<SoakLedger>,
    random: StdRng,
}

/// A request, and what its response must contain.
struct SoakRequest {
    alias: &'static str,
    number: u64,
    streams: bool,
    request: Request<RequestBody>,
}

/// Why a request has no complete and correct response.
enum SoakError {
    /// The request failed, before the response's headers or after them.
    Lost { before_headers: bool, detail: String },
    /// The response is complete, but not correct.
    WrongResponse(String),
}

impl SoakClient {
    async fn send_next(&mut self, number: u64) {
        let cancel_after =
            self.random.random_ratio(1, 40).then(|| Duration::from_micros(self.random.random_range(0..8000)));
        let mut connection = self.connection().await;
        let start = now();
        let soak_request = self.next_request(number, self.ledger.to_nanos(start));
        let streams = soak_request.streams;
        let ended =
            tokio::time::timeout(cancel_after.unwrap_or(RESPONSE_TIMEOUT), soak_request.send(&mut connection)).await;
        match ended {
            Err(_) if cancel_after.is_some() => {
                self.ledger.record_cancel();
                // In HTTP/1.1 that ends the connection; in HTTP/2 it usually resets one stream.
                if self.version == HttpVersion::Http1 || self.random.random_ratio(1, 4) {
                    return;
                }
            }
            Err(_) => self.ledger.record_failure(start, now(), true, format!("no response after {RESPONSE_TIMEOUT:?}")),
            Ok(Ok(())) => self.ledger.record_response(streams),
            Ok(Err(SoakError::Lost { before_headers, detail: message })) => {
                self.ledger.record_failure(start, now(), before_headers, message);
            }
            Ok(Err(SoakError::WrongResponse(message))) => self.ledger.record_violation(message),
        }
        self.connection = Some(connection);
    }

    async fn connection(&mut self) -> GatewayClient {
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            return connection;
        }
        GatewayClient::connect(self.gateway, self.version).await
    }

    fn next_request(&mut self, number: u64, start: u64) -> SoakRequest {
        let random = &mut self.random;
        let alias = ALIASES[random.random_range(0..ALIASES.len())];
        let streams = random.random_ratio(1, 150);
        let padding =
            if random.random_ratio(1, 50) { random.random_range(0..60_000) } else { random.random_range(0..400) };
        let shape = RequestShape { number, padding, model_last: random.random_bool(0.7) };
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
        SoakRequest { alias, number, streams, request }
    }
}

impl SoakRequest {
    async fn send(self, connection: &mut GatewayClient) -> Result<(), SoakError> {
        let Self { alias, number, streams, request } = self;
        let lost = |before_headers, message| SoakError::Lost { before_headers, detail: message };
        let answer = connection.send(request).await.map_err(|error| lost(true, format!("{error:?}")))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await;
        if head.status != StatusCode::OK {
            let message = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
            return Err(lost(true, format!("{} {message:?}", head.status)));
        }
        let body = body.map_err(|error| lost(false, format!("truncated, streams: {streams}: {error:?}")))?.to_bytes();
        let target = head.headers.get("x-rollora-target").map(|target| target.to_str().unwrap_or("?").to_owned());
        if target.is_none() && alias != "plain" {
            return Err(SoakError::WrongResponse(format!("a response for {alias} names no target")));
        }
        let model = target.as_deref().unwrap_or(alias);
        let expected = if streams {
            let events = (1..=EVENT_COUNT).map(|event| format!("data: {model} {number} {event}\n\n"));
            events.collect::<Vec<_>>().concat()
        } else {
            format!("{model} {number}")
        };
        if body == expected {
            Ok(())
        } else {
            let body = String::from_utf8_lossy(&body);
            Err(SoakError::WrongResponse(format!("a response for {alias} {number} names {target:?}: {body:?}")))
        }
    }
}
