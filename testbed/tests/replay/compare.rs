//! Normalizes responses, so that they can be compared without what varies between runs.

use std::collections::HashMap;

use serde_json::Value;

/// Removes everything from a body that varies. Paths below `folder`, the server's working directory, become `<path>`:
/// vLLM replaces paths too, but not wherever the folder is.
pub(crate) fn normalize(body: &str, folder: &str) -> String {
    match serde_json::from_str::<Value>(body) {
        Ok(mut value) => {
            normalize_value(&mut value, folder);
            value.to_string()
        }
        Err(_) => mask_paths(body, folder),
    }
}

/// Normalizes each event of a stream.
pub(crate) fn normalize_events(stream: &str, folder: &str) -> Vec<String> {
    let events = stream.split_terminator("\n\n");
    events
        .map(|event| event.strip_prefix("data: ").map_or_else(|| event.to_owned(), |data| normalize(data, folder)))
        .collect()
}

/// Returns the series names of the complete lines of a `/metrics` response, without values.
pub(crate) fn series_names(metrics: &str) -> Vec<&str> {
    let (whole_lines, _cut) = metrics.rsplit_once('\n').unwrap_or((metrics, ""));
    whole_lines
        .lines()
        .map(|line| if line.starts_with('#') { line } else { line.rsplit_once(' ').map_or(line, |(name, _)| name) })
        .collect()
}

/// Masks times and ids in a text, for a response that was truncated by the recording.
pub(crate) fn mask_variable_parts(text: &str) -> String {
    let pieces = text.split_inclusive(|c: char| !c.is_ascii_hexdigit());
    pieces.map(|piece| if piece.len() > 10 { "#".repeat(piece.len()) } else { piece.to_owned() }).collect()
}

fn normalize_value(value: &mut Value, folder: &str) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), &mut *value) {
                    // Differs in every response; only the prefix is kept.
                    ("id", Value::String(id)) if id.contains('-') => id.truncate(id.find('-').unwrap_or(0)),
                    ("created", Value::Number(_)) => *value = 0.into(),
                    // Generated text is not compared, because the simulator has no model. The recording has empty
                    // tokens too.
                    ("content" | "text", Value::String(text)) => text.clear(),
                    // Keeps the version of vLLM, and removes the hash of its settings.
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

/// Pairs of recorded and simulated texts of equal requests. The mapping must be one to one, so that texts that were
/// equal in the recording are equal in the simulator, and different ones are different.
#[derive(Debug, Default)]
pub(crate) struct TextPairs {
    simulated: HashMap<String, String>,
    recorded: HashMap<String, String>,
}

impl TextPairs {
    /// Records the pair of complete responses to one request; an error describes what does not match.
    pub(crate) fn check_pair(&mut self, request: &Value, recorded: &str, simulated: &str) -> Result<(), String> {
        let (Some(recorded), Some(simulated)) = (message_content(recorded), message_content(simulated)) else {
            return Ok(());
        };
        if request["max_tokens"].as_u64().is_none_or(|tokens| tokens < 4) {
            // Texts this short are often equal by chance, or empty.
            return Ok(());
        }
        let request_key = format!("{} {} {}", request["messages"], request["max_tokens"], request["ignore_eos"]);
        let expected = self.simulated.entry(format!("{request_key} {recorded}")).or_insert_with(|| simulated.clone());
        if *expected != simulated {
            return Err(format!("simulated {simulated:?}, but earlier {expected:?} for the same text {recorded:?}"));
        }
        let expected = self.recorded.entry(format!("{request_key} {simulated}")).or_insert_with(|| recorded.clone());
        if *expected != recorded {
            return Err(format!("simulated {simulated:?} for {recorded:?}, but earlier for {expected:?}"));
        }
        Ok(())
    }
}

fn message_content(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    Some(body.pointer("/choices/0/message/content")?.as_str()?.to_owned())
}
