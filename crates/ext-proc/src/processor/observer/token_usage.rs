//! How many tokens an answer says it took: the last `usage` in it, JSON or events, wherever it is cut.
//!
//! A quotation mark inside of a JSON string is escaped, so what a model writes is never taken for a count.

const PROMPT_KEY: &[u8] = b"\"prompt_tokens\"";
const COMPLETION_KEY: &[u8] = b"\"completion_tokens\"";

/// Longer than a name, a colon and a number together.
const CARRY_LENGTH: usize = 64;

/// What has been read.
#[derive(Debug, Default)]
pub(super) struct TokenUsage {
    carry: Vec<u8>,
    prompt: Option<u64>,
    completion: Option<u64>,
}

impl TokenUsage {
    /// The next piece of the answer.
    pub(super) fn read(&mut self, piece: &[u8]) {
        self.carry.extend_from_slice(piece);
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

/// The last number that stands under `name`.
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

/// The number behind a colon.
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
        fn the_last_usage_counts_wherever_the_answer_is_cut(
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let answer = concat!(
                r#"data: {"usage":{"prompt_tokens":7,"completion_tokens":1}}"#, "\n\n",
                r#"data: {"text":"\"completion_tokens\": 999, \"prompt_tokens\":999"}"#, "\n\n",
                r#"data: {"usage":{"prompt_tokens" : 12345, "completion_tokens":678,"completion_tokens_details":null}}"#,
                "\n\ndata: [DONE]\n\n",
            );
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(answer.len())).collect();
            cuts.sort_unstable();
            let mut tokens = TokenUsage::default();
            let mut start = 0;
            for end in cuts.into_iter().chain([answer.len()]) {
                tokens.read(&answer.as_bytes()[start..end]);
                start = end;
            }
            prop_assert_eq!((tokens.prompt(), tokens.completion()), (Some(12345), Some(678)));
        }
    }
}
