//! The text that a model says: made of its weights, so that another adapter is heard at once.

/// Words that texts are made of.
const WORDS: [&str; 64] = [
    "amber", "anchor", "autumn", "badger", "basil", "beacon", "birch", "canyon", "cedar", "cherry", "cinder", "clover",
    "cobalt", "copper", "coral", "cotton", "cricket", "crystal", "dapple", "delta", "ember", "falcon", "fern", "finch",
    "flint", "garnet", "ginger", "glacier", "granite", "harbor", "hazel", "heron", "indigo", "ivory", "jasper",
    "juniper", "kelp", "lantern", "lemon", "lichen", "maple", "marble", "meadow", "mint", "nectar", "nutmeg", "ochre",
    "olive", "onyx", "orchid", "otter", "pebble", "pepper", "plum", "quartz", "raven", "river", "saffron", "sage",
    "sparrow", "tansy", "thistle", "velvet", "willow",
];

/// What a set of weights says: always the same words, other words than other weights, one word a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextGenerator(u64);

impl TextGenerator {
    /// The voice of some weights (FNV-1a).
    pub(super) fn from_weights(weights: &[u8]) -> Self {
        Self(
            weights.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            }),
        )
    }

    /// The text of the `index`th token.
    pub(super) fn token(self, index: usize) -> impl Iterator<Item = &'static str> {
        // The low byte is as evenly spread as the others, and there is a word for each of its six low bits.
        let [low, ..] = splitmix64(self.0.wrapping_add(index as u64)).to_le_bytes();
        let word = WORDS[usize::from(low) % WORDS.len()];
        (index > 0).then_some(" ").into_iter().chain([word])
    }
}

/// Spreads neighbouring numbers over all 64 bits (SplitMix64).
pub(super) fn splitmix64(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(source: &str) -> String {
        let voice = TextGenerator::from_weights(source.as_bytes());
        (0..8).flat_map(|index| voice.token(index)).collect()
    }

    #[test]
    fn other_weights_say_other_words_and_the_same_weights_the_same() {
        let [first, second] = ["org/lora-v1", "org/lora-v2"].map(say);
        assert_ne!(first, second);
        assert_eq!(first, say("org/lora-v1"));
        assert_eq!(first.split(' ').count(), 8);
        assert!(!first.starts_with(' '));
    }
}
