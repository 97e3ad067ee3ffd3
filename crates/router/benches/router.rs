//! Cost of each step of a request: `cargo bench -p rollora-router`. Reports the best of several rounds, because noise
//! of the machine only adds time.

#![expect(clippy::expect_used, reason = "all input is defined below; invalid input should end the run")]

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use rollora_api::{
    metadata::ObjectMeta,
    names::STICKY_HEADER_ANNOTATION,
    rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup},
};
use rollora_router::{
    active_rules::ActiveRules,
    exchange::{Exchange, RequestHead},
    guard::PathGuard,
    json,
    restore::Restorer,
    route::{self, sticky::StickyKey},
    rules::RewriteKey,
};
use std::{
    hint::black_box,
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

const ROUNDS: u32 = 20;
const MODELS: usize = 10_000;

fn main() -> io::Result<()> {
    let rewrites: Vec<_> = (0..MODELS).map(rewrite).collect();
    let active_rules = Arc::new(ActiveRules::new(pool(), &[RewriteGroup::Current]));
    active_rules.reset(&rewrites);
    let mut out = io::stdout().lock();

    let names: Vec<String> = (0..MODELS).step_by(7).map(model).collect();
    let random = |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let choice = per_item(&names, |index, name| {
        let rules = active_rules.rules();
        rules
            .find(Some(name))
            .and_then(|rule| route::select_target(rule, None, random(index)).map(|target| target.weight()))
    });
    writeln!(out, "{:<44}{:>10.0} ns", "choice among 10,000 rewrites", choice.as_nanos())?;
    let sticky = per_item(&names, |_, name| {
        let rules = active_rules.rules();
        let key = StickyKey::new(b"5f0c2f6e-6c1e-4b1e-9b57-0f6f4f1c2d3e");
        rules.find(Some(name)).and_then(|rule| route::select_target(rule, key, 0).map(|target| target.weight()))
    });
    writeln!(out, "{:<44}{:>10.0} ns", "choice with a sticky header", sticky.as_nanos())?;

    let changes: Vec<_> = rewrites.iter().step_by(500).collect();
    let update = per_item(&changes, |_, rewrite| active_rules.apply(rewrite));
    writeln!(out, "{:<44}{:>10.1} µs", "update of one of 10,000 rewrites", as_micros(update))?;
    let renewal = per_item(&changes, |index, rewrite| {
        let mut rewrite = (*rewrite).clone();
        rewrite.spec.rules[0].targets[1].model_rewrite = format!("{}-new-{index}", rewrite.metadata.name);
        active_rules.delete(&RewriteKey::of(&rewrite).expect("a rewrite of a known group"));
        active_rules.apply(&rewrite);
    });
    writeln!(out, "{:<44}{:>10.1} µs", "one deleted and one with a new target", as_micros(renewal))?;
    let reset = per_item(&[()], |_, ()| active_rules.reset(&rewrites));
    writeln!(out, "{:<44}{:>10.1} ms", "reset of 10,000 rewrites", as_micros(reset) / 1000.0)?;

    let chunks_of = |body: &Bytes, length: usize| -> Vec<Bytes> {
        (0..body.len()).step_by(length).map(|at| body.slice(at..body.len().min(at + length))).collect()
    };
    #[expect(clippy::cast_precision_loss, reason = "a rate that is only printed")]
    let rate = |bytes: usize, time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;

    for (name, body) in
        [("1 KiB", chat(1, 1)), ("1 MiB prompt", chat(1, 1024)), ("1 MiB, 4 KiB a message", chat(256, 4))]
    {
        let time = per_item(&[()], |_, ()| json::scan(&body));
        writeln!(out, "{:<44}{:>10.2} GB/s", format!("scan of {name}"), rate(body.len(), time))?;
    }

    let headers = HeaderMap::from_iter([
        (HeaderName::from_static("content-type"), HeaderValue::from_static("application/json")),
        (HeaderName::from_static("x-session-id"), HeaderValue::from_static("")),
    ]);
    let head = RequestHead { path_and_query: "/v1/chat/completions", headers: &headers, has_body: true };
    let body = chat(1, 1024);
    let chunks = chunks_of(&body, 16 * 1024);
    let time = per_item(&[()], |_, ()| {
        let mut out = Vec::with_capacity(chunks.len() + 2);
        let (mut exchange, _) = Exchange::begin(&active_rules, PathGuard::Strict, &head, Timestamp::UNIX_EPOCH);
        for chunk in &chunks {
            exchange.request_chunk(chunk, 0, Timestamp::UNIX_EPOCH, &mut out).expect("a rule matches");
        }
        exchange.request_end(&mut out).expect("a complete body");
        out
    });
    writeln!(out, "{:<44}{:>10.2} GB/s", "exchange of 1 MiB in chunks of 16 KiB", rate(body.len(), time))?;

    let response_headers = HeaderMap::from_iter([(
        HeaderName::from_static("content-type"),
        HeaderValue::from_static("text/event-stream"),
    )]);
    let events = events(1000);
    let chunks = chunks_of(&events, 4 * 1024);
    let time = per_item(&[()], |_, ()| {
        let mut out = Vec::with_capacity(4000);
        let mut restorer =
            Restorer::new(&response_headers, &format!("{}-v1", model(5)), &model(5)).expect("an event stream");
        for chunk in &chunks {
            restorer.push(chunk, &mut out);
        }
        restorer.finish(&mut out);
        out
    });
    writeln!(
        out,
        "{:<44}{:>10.0} ns",
        format!("name restored in an event of {} bytes", events.len() / 1000),
        (time / 1000).as_nanos()
    )?;

    let body = chat(1, 1);
    let bodies = vec![(); 1000];
    let exchange = per_item(&bodies, |index, ()| {
        let (mut exchange, _) = Exchange::begin(&active_rules, PathGuard::Strict, &head, Timestamp::UNIX_EPOCH);
        let action = exchange.request_body(&body, random(index), Timestamp::UNIX_EPOCH);
        exchange.response_head(http::StatusCode::OK, Timestamp::UNIX_EPOCH);
        exchange.end(Timestamp::UNIX_EPOCH);
        action
    });
    writeln!(out, "{:<44}{:>10.0} ns", "a whole exchange of 1 KiB", exchange.as_nanos())
}

/// Returns the time per item in the best round.
fn per_item<T, R>(items: &[T], mut run: impl FnMut(usize, &T) -> R) -> Duration {
    let count = u32::try_from(items.len()).expect("item count fits into u32");
    let round = |_| {
        #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
        let begin = Instant::now();
        for (index, item) in items.iter().enumerate() {
            black_box(run(index, black_box(item)));
        }
        begin.elapsed() / count
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}

fn as_micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn pool() -> PoolRef {
    PoolRef { name: "pool".to_owned(), ..PoolRef::default() }
}

fn model(index: usize) -> String {
    format!("team-{}-segment-lora", index * 7919 % MODELS)
}

fn rewrite(index: usize) -> InferenceModelRewrite {
    let model = model(index);
    let spec = serde_json::json!({
        "poolRef": pool(),
        "rules": [{
            "matches": [{ "model": { "value": model } }],
            "targets": [
                { "modelRewrite": format!("{model}-v1"), "weight": 90 },
                { "modelRewrite": format!("{model}-v2"), "weight": 10 },
            ],
        }],
    });
    InferenceModelRewrite {
        api_version: RewriteGroup::Current.api_version().to_owned(),
        kind: "InferenceModelRewrite".to_owned(),
        metadata: ObjectMeta {
            uid: Some(format!("uid-{index}")),
            annotations: [(STICKY_HEADER_ANNOTATION.to_owned(), "x-session-id".to_owned())].into(),
            ..ObjectMeta::named(model)
        },
        spec: serde_json::from_value(spec).expect("a valid rewrite spec"),
        status: None,
    }
}

/// A chat request with `model` as its last key, as common clients send it.
fn chat(messages: usize, kib: usize) -> Bytes {
    // One escape per line of 64 bytes, as in written text.
    let line = format!("{}\\n", "A sentence of a prompt. ".repeat(3).split_at(62).0);
    let content = line.repeat(kib * 16);
    let message =
        serde_json::json!({ "role": "user" }).to_string().replace('}', &format!(",\"content\":\"{content}\"}}"));
    let messages = vec![message; messages].join(",");
    Bytes::from(format!("{{\"messages\":[{messages}],\"stream\":true,\"max_tokens\":64,\"model\":\"{}\"}}", model(5)))
}

/// Events of a chat response, as vLLM writes them.
fn events(count: usize) -> Bytes {
    let event = |index: usize| {
        let choice = r#"{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":null}"#;
        let id = format!("chatcmpl-{index:032x}");
        let model = model(5);
        let event = format!(
            r#"{{"id":"{id}","object":"chat.completion.chunk","created":1760000000,"model":"{model}-v1","choices":[{choice}]}}"#
        );
        format!("data: {event}\n\n")
    };
    Bytes::from((0..count).map(event).collect::<String>())
}
