//! Whether two answers are the same but for what varies from one run to the next.

use std::collections::HashMap;

use serde_json::Value;

/// An answer with everything that varies taken out of its body. `folder` is the server's working directory, which
/// is shown as `<path>` with what follows it: vLLM does so itself, but not wherever the folder is.
pub(crate) fn normalize(body: &str, folder: &str) -> String {
    match serde_json::from_str::<Value>(body) {
        Ok(mut value) => {
            normalize_value(&mut value, folder);
            value.to_string()
        }
        Err(_) => mask_paths(body, folder),
    }
}

/// The events of a stream, each normal.
pub(crate) fn normalize_events(stream: &str, folder: &str) -> Vec<String> {
    let events = stream.split_terminator("\n\n");
    events
        .map(|event| event.strip_prefix("data: ").map_or_else(|| event.to_owned(), |data| normalize(data, folder)))
        .collect()
}

/// The series names of a `/metrics` answer's whole lines, without values.
pub(crate) fn series_names(metrics: &str) -> Vec<&str> {
    let (whole_lines, _cut) = metrics.rsplit_once('\n').unwrap_or((metrics, ""));
    whole_lines
        .lines()
        .map(|line| if line.starts_with('#') { line } else { line.rsplit_once(' ').map_or(line, |(name, _)| name) })
        .collect()
}

/// A text with its times and ids blotted out, for an answer that was cut when it was recorded.
pub(crate) fn mask_variable_parts(text: &str) -> String {
    let pieces = text.split_inclusive(|c: char| !c.is_ascii_hexdigit());
    pieces.map(|piece| if piece.len() > 10 { "#".repeat(piece.len()) } else { piece.to_owned() }).collect()
}

fn normalize_value(value: &mut Value, folder: &str) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), &mut *value) {
                    // Made anew for every answer: the kind of id stays.
                    ("id", Value::String(id)) if id.contains('-') => id.truncate(id.find('-').unwrap_or(0)),
                    ("created", Value::Number(_)) => *value = 0.into(),
                    // Generated; the simulator has no model. An empty token is an empty text there, too.
                    ("content" | "text", Value::String(text)) => text.clear(),
                    // The version of vLLM stays, the hash of its settings goes.
                    ("system_fingerprint", Value::String(print)) => print.truncate(print.rfind('-').unwrap_or(0)),
                    ("message", Value::String(message)) => *message = mask_paths(message, folder),
                    _ => normalize_value(value, folder),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| normalize_value(item, folder)),
        _ => {}
    }
}

fn mask_paths(text: &str, folder: &str) -> String {
    let text = text.replace("<path>", folder);
    let mut pieces = text.split(folder);
    let mut shown = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let rest = piece.trim_start_matches(|c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
        shown.extend(["<path>", rest]);
    }
    shown
}

/// Pairs of recorded and simulated texts of equal requests: they must be one to one, so that an adapter that answered
/// as another one did, or as itself before, does so in the simulator.
#[derive(Debug, Default)]
pub(crate) struct TextPairs {
    simulated: HashMap<String, String>,
    recorded: HashMap<String, String>,
}

impl TextPairs {
    /// Notes a pair of whole answers to one request; says what does not fit.
    pub(crate) fn check_pair(&mut self, request: &Value, recorded: &str, simulated: &str) -> Result<(), String> {
        let (Some(recorded), Some(simulated)) = (message_content(recorded), message_content(simulated)) else {
            return Ok(());
        };
        if request["max_tokens"].as_u64().is_none_or(|tokens| tokens < 4) {
            // So little is often the same by chance, or nothing that can be seen.
            return Ok(());
        }
        let asked = format!("{} {} {}", request["messages"], request["max_tokens"], request["ignore_eos"]);
        let expected = self.simulated.entry(format!("{asked} {recorded}")).or_insert_with(|| simulated.clone());
        if *expected != simulated {
            return Err(format!("said {simulated:?} where the text {recorded:?} stood for {expected:?} before"));
        }
        let expected = self.recorded.entry(format!("{asked} {simulated}")).or_insert_with(|| recorded.clone());
        if *expected != recorded {
            return Err(format!("said {simulated:?} for {recorded:?}, and for {expected:?} before"));
        }
        Ok(())
    }
}

fn message_content(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    Some(body.pointer("/choices/0/message/content")?.as_str()?.to_owned())
}
