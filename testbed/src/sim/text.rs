//! Text that a model generates. It depends on the weights, so that clients can tell adapters apart.

const WORDS: [&str; 64] = [
    "amber", "anchor", "autumn", "badger", "basil", "beacon", "birch", "canyon", "cedar", "cherry", "cinder", "clover",
    "cobalt", "copper", "coral", "cotton", "cricket", "crystal", "dapple", "delta", "ember", "falcon", "fern", "finch",
    "flint", "garnet", "ginger", "glacier", "granite", "harbor", "hazel", "heron", "indigo", "ivory", "jasper",
    "juniper", "kelp", "lantern", "lemon", "lichen", "maple", "marble", "meadow", "mint", "nectar", "nutmeg", "ochre",
    "olive", "onyx", "orchid", "otter", "pebble", "pepper", "plum", "quartz", "raven", "river", "saffron", "sage",
    "sparrow", "tansy", "thistle", "velvet", "willow",
];

/// Generates the text of a set of weights: one word a token, always the same, and different for other weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextGenerator(u64);

impl TextGenerator {
    /// Seeds the generator with a hash of the weights (FNV-1a).
    pub(super) fn from_weights(weights: &[u8]) -> Self {
        Self(
            weights.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            }),
        )
    }

    /// Returns the text of the token at `index`.
    pub(super) fn token(self, index: usize) -> impl Iterator<Item = &'static str> {
        // The low byte is as uniformly distributed as the others, and its six low bits select one of 64 words.
        let [low, ..] = splitmix64(self.0.wrapping_add(index as u64)).to_le_bytes();
        let word = WORDS[usize::from(low) % WORDS.len()];
        (index > 0).then_some(" ").into_iter().chain([word])
    }
}

/// Spreads neighboring numbers over all 64 bits (SplitMix64).
pub(super) fn splitmix64(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(source: &str) -> String {
        let generator = TextGenerator::from_weights(source.as_bytes());
        (0..8).flat_map(|index| generator.token(index)).collect()
    }

    #[test]
    fn text_depends_only_on_the_weights() {
        let [first, second] = ["org/lora-v1", "org/lora-v2"].map(generate);
        assert_ne!(first, second);
        assert_eq!(first, generate("org/lora-v1"));
        assert_eq!(first.split(' ').count(), 8);
        assert!(!first.starts_with(' '));
    }
}
