//! Weighted rendezvous hashing: a client gets the same target at every replica, and raising the weight of one target
//! moves clients only to that target.
//!
//! Every target of the rule draws a number u in (0, 1) for the client; the lowest −ln(u) / weight wins. This is a race
//! of exponential clocks, so that the shares equal the weights. All arithmetic uses integers, so that every replica and
//! every version gets the same result. The complete definition:
//!
//! - `fnv` is FNV-1a of 64 bits; `mix` is the finalizer of SplitMix64.
//! - client = fnv(header value); seed = mix(fnv(rewrite UID, a zero byte, target name)).
//! - draw = mix(client xor seed), at least 1; it stands for u = draw / 2^64.
//! - cost = (64 − log2(draw)) · 2^44, the logarithm truncated to 44 fractional bits.
//! - The lowest cost / weight wins, compared as fractions; among equals the lower name.

use crate::rules::RuleTarget;
use std::sync::Arc;

/// Fractional bits of a logarithm: enough to split weights of 1 and 1,000,000 to a ten-millionth.
const FRACTION_BITS: u32 = 44;

/// Hash of the value of a sticky header, which identifies the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StickyKey(u64);

impl StickyKey {
    /// Hashes the value of a sticky header. `None` if the value is empty.
    pub fn new(value: &[u8]) -> Option<Self> {
        (!value.is_empty()).then(|| Self(fnv1a([value])))
    }
}

/// Returns the seed by which a target's draws differ from those of all other targets.
pub(crate) fn target_seed(uid: &str, target: &str) -> u64 {
    mix(fnv1a([uid.as_bytes(), &[0], target.as_bytes()]))
}

/// Selects the target for `key`, independent of the order of `targets`.
pub(super) fn select_target(targets: &[Arc<RuleTarget>], key: StickyKey) -> Option<&Arc<RuleTarget>> {
    let mut best: Option<(&Arc<RuleTarget>, u64)> = None;
    for target in targets {
        let cost = cost(mix(key.0 ^ target.seed));
        let wins = best.is_none_or(|(other, least)| {
            // Both sides stay below 2^(50 + 63).
            let (ours, theirs) =
                (u128::from(cost) * u128::from(other.weight()), u128::from(least) * u128::from(target.weight()));
            (ours, target.name()) < (theirs, other.name())
        });
        if wins {
            best = Some((target, cost));
        }
    }
    best.map(|(target, _)| target)
}

/// Returns −log2(draw / 2^64) in units of 2^-44; never 0.
fn cost(draw: u64) -> u64 {
    let draw = draw.max(1);
    let zeros = draw.leading_zeros();
    // Squaring a number in [1, 2) doubles its logarithm; the next bit is 1 if the square is 2 or more.
    let mut mantissa = draw << zeros;
    let mut log = u64::from(63 - zeros);
    for _ in 0..FRACTION_BITS {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let digit = u64::from(square >> 64 != 0);
        log = log << 1 | digit;
        #[expect(clippy::cast_possible_truncation, reason = "shifted back below 2^64 where it was not")]
        {
            mantissa = (square >> digit) as u64;
        }
    }
    (64 << FRACTION_BITS) - log
}

fn fnv1a<const N: usize>(parts: [&[u8]; N]) -> u64 {
    parts
        .into_iter()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
