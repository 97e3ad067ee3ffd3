//! Token counts of a response: the last `usage` in it, as JSON or in events, for every chunking.
//!
//! Quotation marks in JSON strings are escaped, so text that a model generates is never taken for a count.

const PROMPT_KEY: &[u8] = b"\"prompt_tokens\"";
const COMPLETION_KEY: &[u8] = b"\"completion_tokens\"";

/// Number of bytes kept from the previous chunk: more than a key, a colon and a number together.
const CARRY_LENGTH: usize = 64;

/// State of the search.
#[derive(Debug, Default)]
pub(super) struct TokenUsage {
    carry: Vec<u8>,
    prompt: Option<u64>,
    completion: Option<u64>,
}

impl TokenUsage {
    /// Reads the next chunk of the response.
    pub(super) fn read(&mut self, chunk: &[u8]) {
        self.carry.extend_from_slice(chunk);
        for (name, count) in [(PROMPT_KEY, &mut self.prompt), (COMPLETION_KEY, &mut self.completion)] {
            *count = last_count(&self.carry, name).or(*count);
        }
        let known = self.carry.len().saturating_sub(CARRY_LENGTH);
        self.carry.drain(..known);
    }

    pub(super) fn prompt(&self) -> Option<u64> {
        self.prompt
    }

    pub(super) fn completion(&self) -> Option<u64> {
        self.completion
    }
}

/// Returns the last number with the key `name`.
fn last_count(text: &[u8], name: &[u8]) -> Option<u64> {
    let mut end = text.len();
    while let Some(at) = memchr::memmem::rfind(text.get(..end)?, name) {
        if let Some(number) = text.get(at + name.len()..).and_then(parse_count) {
            return Some(number);
        }
        end = at;
    }
    None
}

/// Parses a number after a colon.
fn parse_count(text: &[u8]) -> Option<u64> {
    let value = text.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let digits = value.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(value.len());
    str::from_utf8(value.get(..digits)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn last_usage_is_read_for_every_chunking(
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let response = concat!(
                r#"data: {"usage":{"prompt_tokens":7,"completion_tokens":1}}"#, "\n\n",
                r#"data: {"text":"\"completion_tokens\": 999, \"prompt_tokens\":999"}"#, "\n\n",
                r#"data: {"usage":{"prompt_tokens" : 12345, "completion_tokens":678,"completion_tokens_details":null}}"#,
                "\n\ndata: [DONE]\n\n",
            );
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(response.len())).collect();
            cuts.sort_unstable();
            let mut tokens = TokenUsage::default();
            let mut start = 0;
            for end in cuts.into_iter().chain([response.len()]) {
                tokens.read(&response.as_bytes()[start..end]);
                start = end;
            }
            prop_assert_eq!((tokens.prompt(), tokens.completion()), (Some(12345), Some(678)));
        }
    }
}
