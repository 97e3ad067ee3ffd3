//! Rollouts that would work against each other: the older one works, the other says so.

use rollora_api::{operator_key::matches_pattern, rollout::Rollout};

/// The older Rollout that works on the same model or the same ids, in words.
pub(crate) fn conflict(rollout: &Rollout, others: &[Rollout]) -> Option<String> {
    let older = others.iter().filter(|other| !is_same(rollout, other) && is_older(other, rollout));
    older.filter_map(|other| clash(rollout, other).map(|what| format!("Rollout {} {what}", other.metadata.name))).min()
}

/// Whether these are one object.
pub(crate) fn is_same(one: &Rollout, other: &Rollout) -> bool {
    one.metadata.namespace == other.metadata.namespace && one.metadata.name == other.metadata.name
}

fn is_older(one: &Rollout, other: &Rollout) -> bool {
    let age = |rollout: &Rollout| (rollout.metadata.creation_timestamp, rollout.metadata.name.clone());
    one.metadata.deletion_timestamp.is_none() && age(one) < age(other)
}

fn clash(one: &Rollout, other: &Rollout) -> Option<String> {
    if one.metadata.namespace != other.metadata.namespace {
        return None;
    }
    let (one, other) = (&one.spec, &other.spec);
    if one.model == other.model && one.pool_ref == other.pool_ref {
        return Some(format!("is older and has the same model {} in the same pool: delete one of the two", one.model));
    }
    let (ours, theirs) = (one.adapter.governed()?, other.adapter.governed()?);
    (one.adapters_ref == other.adapters_ref && overlap(ours, theirs)).then(|| {
        format!("is older and governs {theirs}, which overlaps with {ours}: give them patterns that share no id")
    })
}

/// Whether some id matches both patterns.
fn overlap(one: &str, other: &str) -> bool {
    match (one.split_once('*'), other.split_once('*')) {
        (None, _) => matches_pattern(other, one),
        (_, None) => matches_pattern(one, other),
        (Some((before, after)), Some((other_before, other_after))) => {
            let starts = before.starts_with(other_before) || other_before.starts_with(before);
            let ends = after.ends_with(other_after) || other_after.ends_with(after);
            starts && ends
        }
    }
}
