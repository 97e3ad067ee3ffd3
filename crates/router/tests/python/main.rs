//! Compares the splice with a real Python: vLLM parses bodies with `json.loads(bytes)`, which accepts more than strict
//! JSON (`NaN`, lone surrogates, UTF-16, duplicate keys).
//!
//! Thousands of bodies from a fixed seed go to one `python3`; the test is skipped with a message if there is none.
#![expect(clippy::unwrap_used, reason = "a test: an unexpected failure is a finding")]

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use rollora_router::{
    active_rules::ActiveRules,
    exchange::{BodyAction, Exchange, RequestHead},
    guard::PathGuard,
};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::Arc,
};

const BODIES: usize = 6000;
const SEED: u64 = 5;
const SCRIPT: &str = include_str!("models.py");

/// Values, among them some that Python and strict JSON read differently.
const VALUES: [&str; 38] = [
    r#""m""#,
    r#""m""#,
    r#""m""#,
    r#""\u006d""#,
    r#""other""#,
    r#""\ud800""#,
    r#""m\udfff""#,
    r#""\ud83d\ude00""#,
    r#""\ude00\ud83d""#,
    "\"m\t\"",
    "\"m\n\"",
    "\"\u{7f}\"",
    r#""\m""#,
    r#""\u00e""#,
    r#""\u00 6d""#,
    r#""\u+06d""#,
    r#""""#,
    "null",
    "true",
    "NaN",
    "-NaN",
    "Infinity",
    "-Infinity",
    "nan",
    "1e400",
    "-0",
    "01",
    "1.",
    ".5",
    "+1",
    "0x10",
    "123456789012345678901234567890",
    r#"{"model":"m"}"#,
    r#"[{"model":"m"},[]]"#,
    "[1,]",
    "{}",
    "'m'",
    "\"é\"",
];
const KEYS: [&str; 14] = [
    r#""model""#,
    r#""model""#,
    r#""model""#,
    r#""mod\u0065l""#,
    r#""\u006D\u006f\u0064\u0065\u006c""#,
    r#""Model""#,
    r#""model ""#,
    r#""a""#,
    r#""messages""#,
    r#""""#,
    r#""\ud800""#,
    "model",
    "'model'",
    r#""model\u0000""#,
];
const SPACES: [&str; 10] = ["", "", "", "", " ", "\n", "\t \r", "\u{a0}", "\u{c}", "\0"];
const SUFFIXES: [&str; 10] = ["", "", "", "", "\n", " x", "{}", "}", "\0", "{\"model\":\"m\"}"];

fn any_body(random: &mut StdRng) -> Vec<u8> {
    let pick = |from: &'static [&'static str], random: &mut StdRng| *from.choose(random).unwrap();
    // Mostly plain white space, so that most bodies are valid.
    let space = |random: &mut StdRng| {
        let from = if random.random_bool(0.03) { &SPACES[..] } else { &SPACES[..7] };
        pick(from, random)
    };
    let mut text = space(random).to_owned();
    text.push('{');
    let members = random.random_range(0..5);
    for index in 0..members {
        for part in [
            if index > 0 { "," } else { "" },
            space(random),
            if random.random_bool(0.5) { KEYS[0] } else { pick(&KEYS, random) },
            space(random),
            ":",
            space(random),
            pick(if random.random_bool(0.5) { &VALUES[..6] } else { &VALUES }, random),
            space(random),
        ] {
            text.push_str(part);
        }
    }
    if random.random_bool(0.02) {
        let depth = random.random_range(1..3000);
        let comma = if members > 0 { "," } else { "" };
        write!(text, "{comma}\"deep\":{}{}", "[".repeat(depth), "]".repeat(depth)).unwrap();
    }
    text.push('}');
    text.push_str(if random.random_bool(0.2) { pick(&SUFFIXES, random) } else { "" });
    let mut body = text.into_bytes();
    match random.random_range(0..40) {
        0 => body.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
        1 => body.insert(0, 0xef),
        2 => body = encode_wide(&body, &[0xff, 0xfe], |unit| unit.to_le_bytes().to_vec()),
        3 => body = encode_wide(&body, &[], |unit| unit.to_be_bytes().to_vec()),
        4 => body = encode_wide(&body, &[], |unit| u32::from(unit).to_le_bytes().to_vec()),
        5 => body = encode_wide(&body, &[], |unit| u32::from(unit).to_be_bytes().to_vec()),
        6 => body.truncate(random.random_range(0..=body.len())),
        7..=10 => {
            let at = random.random_range(0..body.len());
            body[at] = random.random();
        }
        _ => {}
    }
    body
}

fn encode_wide(body: &[u8], mark: &[u8], unit: impl Fn(u16) -> Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8_lossy(body).into_owned();
    mark.iter().copied().chain(text.encode_utf16().flat_map(unit)).collect()
}

/// Rules that route `m` to `m-v1` and, if `generic`, all other models to `base`.
fn active_rules(generic: bool) -> Arc<ActiveRules> {
    let rewrite = |name: &str, rule: Value| -> InferenceModelRewrite {
        let rewrite = json!({
            "apiVersion": RewriteGroup::Current.api_version(), "kind": "InferenceModelRewrite",
            "metadata": { "name": name, "namespace": "ns", "uid": name },
            "spec": { "poolRef": { "name": "pool" }, "rules": [rule] },
        });
        serde_json::from_value(rewrite).unwrap()
    };
    let matches = json!([{ "model": { "value": "m" } }]);
    let mut rewrites = vec![rewrite("m", json!({ "matches": matches, "targets": [{ "modelRewrite": "m-v1" }] }))];
    if generic {
        rewrites.push(rewrite("any", json!({ "targets": [{ "modelRewrite": "base" }] })));
    }
    let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
    let active_rules = Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current]));
    active_rules.reset(&rewrites);
    active_rules
}

/// Result of an exchange with one body.
struct ExchangeOutcome {
    sent: Vec<u8>,
    generic: bool,
    /// The body that the server gets; `None` if the request was refused.
    forwarded: Option<Vec<u8>>,
    /// The target that a rule selected.
    target: Option<String>,
    /// The model that the request counts for.
    served_model: Option<String>,
}

fn run_exchange(sent: Vec<u8>, active_rules: &Arc<ActiveRules>, generic: bool) -> ExchangeOutcome {
    let headers = HeaderMap::new();
    let head = RequestHead { path_and_query: "/v1/completions", headers: &headers, has_body: true };
    let (mut exchange, _) = Exchange::begin(active_rules, PathGuard::Off, &head, Timestamp::UNIX_EPOCH);
    let forwarded = match exchange.request_body(&Bytes::from(sent.clone()), 0, Timestamp::UNIX_EPOCH) {
        BodyAction::Forward => Some(sent.clone()),
        BodyAction::Replace(spliced) => Some(spliced.into_bytes().to_vec()),
        BodyAction::Refuse(_) => None,
    };
    let model = exchange.served_model().map(str::to_owned);
    let target = exchange.response_head(StatusCode::OK, Timestamp::UNIX_EPOCH);
    let target = target.map(|target| target.to_str().unwrap().to_owned());
    ExchangeOutcome { sent, generic, forwarded, target, served_model: model }
}

/// Returns Python's result for each body. `None` if there is no Python.
fn run_python(bodies: &[&[u8]]) -> Option<Vec<Value>> {
    let mut command = Command::new("python3");
    let spawned = command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut python) = spawned else {
        eprintln!("skipped: comparison with json.loads needs python3, which was not found");
        return None;
    };
    let mut stdin = python.stdin.take().unwrap();
    let lines: Vec<String> = bodies
        .iter()
        .map(|body| body.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect())
        .collect();
    let mut output = String::new();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(lines.concat().as_bytes()).unwrap());
        python.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    });
    assert!(python.wait().unwrap().success());
    Some(output.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn python_reads_only_the_decided_model() {
    let mut random = StdRng::seed_from_u64(SEED);
    let by_rules = [active_rules(false), active_rules(true)];
    let outcomes: Vec<ExchangeOutcome> =
        (0..BODIES).map(|index| run_exchange(any_body(&mut random), &by_rules[index % 2], index % 2 == 1)).collect();
    let forwarded_body = |body: &ExchangeOutcome| body.forwarded.clone().unwrap_or_default();
    let forwarded: Vec<Vec<u8>> = outcomes.iter().map(forwarded_body).collect();
    let all: Vec<&[u8]> =
        outcomes.iter().map(|outcome| &outcome.sent[..]).chain(forwarded.iter().map(|body| &body[..])).collect();
    let Some(results) = run_python(&all) else { return };
    let (before, after) = results.split_at(BODIES);
    let mut counts = [0_usize; 4];
    for ((outcome, before), after) in outcomes.iter().zip(before).zip(after) {
        let text = String::from_utf8_lossy(&outcome.sent).into_owned();
        let parsed = last_model(after);
        match (&outcome.forwarded, &outcome.target) {
            (Some(_), Some(target)) => {
                assert!(after["models"].is_null() || after["models"] == 1, "{text:?}: {after}");
                // The server either refuses the body or reads the selected target.
                assert!(after["models"].is_null() || parsed.as_ref() == Some(target), "{text:?}: {after}");
                counts[0] += usize::from(parsed.is_some());
                // A valid body stays valid. An invalid value may have been replaced, which makes the body valid.
                assert!(before["models"].is_null() || !after["models"].is_null(), "{text:?}");
            }
            (Some(forwarded), None) => {
                assert_eq!(forwarded, &outcome.sent, "{text:?}");
                let read = !before["models"].is_null();
                assert!(!read || !outcome.generic, "{text:?} is valid and got no target");
                assert!(parsed.as_deref() != Some("m"), "{text:?} reaches the alias without a rule");
                // The request counts for the model that serves it.
                assert!(!read || outcome.served_model == parsed, "{text:?}: {:?} {parsed:?}", outcome.served_model);
                counts[1] += usize::from(read);
            }
            (None, _) => {
                let duplicate = before["models"].as_u64().is_some_and(|models| models > 1);
                let is_wide = outcome.sent.iter().take(4).any(|byte| [0, 0xfe, 0xff].contains(byte));
                let refused = before["models"].is_null();
                assert!(refused || duplicate || is_wide, "{text:?} was refused although it is valid: {before}");
                counts[2] += usize::from(duplicate);
                counts[3] += usize::from(is_wide);
            }
        }
    }
    // Each kind of outcome occurred often.
    assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
}

/// Returns the model that Python reads. `None` if it is not Unicode text, which no model name is.
fn last_model(result: &Value) -> Option<String> {
    let units = result["last"].as_array()?;
    units.iter().map(|unit| char::from_u32(u32::try_from(unit.as_u64()?).ok()?)).collect()
}
