//! Judges the record of the clients by the rules that were in force. Pure.
//!
//! Two things must not happen: a request without an answer, and an answer by an adapter whose weight was 0 in every
//! rule in force, at any router, from the request's start to its first byte.

use crate::{
    rules::Spell,
    traffic::{Exchange, Failure},
};
use std::{collections::BTreeMap, fmt, time::Instant};

/// What is to be said of a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Requests.
    pub requests: usize,
    /// Answers by version.
    pub by_model: BTreeMap<String, usize>,
    /// Requests that found nobody listening, so that a client that tries again is served.
    pub refused: usize,
    /// Requests without an answer for any other reason, in words.
    pub errors: Vec<String>,
    /// Answers by an adapter that had no weight, in words.
    pub unweighted: Vec<String>,
    /// Answers whose time overlaps one in which a rule came and went unseen.
    pub unjudged: usize,
}

/// Judges `exchanges` by the spells of each router.
pub fn judge(exchanges: &[Exchange], routers: &[Vec<Spell>]) -> Verdict {
    let mut verdict = Verdict { requests: exchanges.len(), ..Verdict::default() };
    for exchange in exchanges {
        match (exchange.model(), exchange.failure()) {
            (Some(model), _) => {
                *verdict.by_model.entry(model.to_owned()).or_default() += 1;
                verdict.answer(exchange, model, routers);
            }
            (None, Some(Failure::Refused)) => verdict.refused += 1,
            (None, failure) => {
                let words = failure.map(ToString::to_string).unwrap_or_default();
                let took = exchange.end - exchange.start;
                verdict.errors.push(format!("{:?} request, {took:.1?} after its start: {words}", exchange.kind));
            }
        }
    }
    verdict
}

impl Verdict {
    /// How many answers.
    pub fn answered(&self) -> usize {
        self.by_model.values().sum()
    }

    fn answer(&mut self, exchange: &Exchange, model: &str, routers: &[Vec<Spell>]) {
        let (start, end) = (exchange.start, exchange.head.unwrap_or(exchange.end));
        let spells: Vec<_> = routers.iter().flat_map(|spells| in_force(spells, start, end)).collect();
        if spells.iter().any(|spell| spell.weights.iter().any(|(id, weight)| id == model && *weight > 0)) {
            return;
        }
        if routers.iter().any(|spells| saw_less(spells, start, end)) {
            self.unjudged += 1;
            return;
        }
        let rules: Vec<_> = spells.iter().map(|spell| format!("#{} {:?}", spell.sequence, spell.weights)).collect();
        let took = end - start;
        self.unweighted.push(format!("{model} answered after {took:.1?}, while in force was {}", rules.join(", ")));
    }
}

/// The spells that may have been in force at some moment from `start` to `end`.
fn in_force(spells: &[Spell], start: Instant, end: Instant) -> impl Iterator<Item = &Spell> {
    spells.iter().filter(move |spell| spell.from <= end && spell.until.is_none_or(|until| until >= start))
}

/// Whether some rule may have been in force from `start` to `end` that nobody saw.
fn saw_less(spells: &[Spell], start: Instant, end: Instant) -> bool {
    let before_all = spells.first().is_none_or(|first| start < first.from);
    let jumped = spells.windows(2).any(|pair| {
        let (before, after) = (&pair[0], &pair[1]);
        // What was missed came and went where both may have been in force.
        after.sequence > before.sequence + 1 && after.from <= end && before.until.is_none_or(|until| until >= start)
    });
    before_all || jumped
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {} errors", self.requests, self.errors.len())?;
        if self.refused > 0 {
            write!(f, ", {} refused while nobody listened", self.refused)?;
        }
        write!(f, ", {} answers by an adapter without weight", self.unweighted.len())?;
        if self.unjudged > 0 {
            write!(f, " ({} not judged)", self.unjudged)?;
        }
        self.by_model.iter().try_for_each(|(model, count)| write!(f, "; {model}: {count}"))?;
        let worst = self.errors.iter().chain(&self.unweighted).take(10);
        worst.into_iter().try_for_each(|words| write!(f, "\n  {words}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        traffic::{Kind, Outcome},
    };
    use std::time::Duration;

    /// Sequences 1 (v1 alone, to 100 ms), 2 (both, 90 to 200 ms), 3 (v2 alone, from 190 ms).
    fn spells(zero: Instant) -> Vec<Spell> {
        let at = |millis| zero + Duration::from_millis(millis);
        let spell = |sequence, from, until: Option<u64>, ids: &[&str]| Spell {
            from: at(from),
            until: until.map(at),
            sequence,
            weights: ids.iter().map(|id| ((*id).to_owned(), 50)).collect(),
        };
        vec![spell(1, 0, Some(100), &["v1"]), spell(2, 90, Some(200), &["v1", "v2"]), spell(3, 190, None, &["v2"])]
    }

    fn exchange(zero: Instant, start: u64, head: u64, outcome: Outcome) -> Exchange {
        let at = |millis| zero + Duration::from_millis(millis);
        Exchange { kind: Kind::Json, start: at(start), head: Some(at(head)), end: at(head + 500), outcome }
    }

    fn answer(zero: Instant, start: u64, head: u64, model: &str) -> Exchange {
        exchange(zero, start, head, Outcome::Answered { model: model.to_owned(), text: String::new() })
    }

    #[test]
    fn an_answer_is_right_when_some_rule_between_start_and_first_byte_gave_its_adapter_weight() {
        let zero = clock::now();
        for (start, head, model, right) in [
            (10, 20, "v1", true),
            (10, 20, "v2", false),
            (10, 95, "v2", true), // begun under 1, perhaps chosen under 2
            (150, 160, "v1", true),
            (150, 160, "v2", true),
            (195, 198, "v1", true), // 2 may have been in force till 200
            (201, 220, "v1", false),
            (201, 220, "v2", true),
            (201, 220, "v3", false),
        ] {
            let verdict = judge(&[answer(zero, start, head, model)], &[spells(zero)]);
            assert_eq!(verdict.unweighted.is_empty(), right, "{model} from {start} to {head}: {verdict}");
            assert_eq!(verdict.unjudged, 0);
        }
    }

    #[test]
    fn a_late_end_of_the_answer_is_no_excuse() {
        let zero = clock::now();
        // It ends at 520 ms, when v2 has weight; its first byte came when it had none.
        assert_eq!(judge(&[answer(zero, 10, 20, "v2")], &[spells(zero)]).unweighted.len(), 1);
    }

    #[test]
    fn one_router_that_still_has_the_old_rule_is_enough() {
        let zero = clock::now();
        let slow = vec![Spell { until: None, ..spells(zero)[0].clone() }];
        let late = answer(zero, 300, 310, "v1");
        assert_eq!(judge(std::slice::from_ref(&late), &[spells(zero)]).unweighted.len(), 1);
        assert_eq!(judge(&[late], &[spells(zero), slow]).unweighted.len(), 0);
    }

    #[test]
    fn what_happened_beside_a_rule_that_nobody_saw_is_not_judged() {
        let zero = clock::now();
        let mut gap = spells(zero);
        gap.remove(1);
        // From 1 to 3: the rule in between was in force somewhere between the last look at 1 and the first at 3.
        gap[0].until = Some(zero + Duration::from_millis(200));
        let beside = judge(&[answer(zero, 192, 195, "v9")], &[gap.clone()]);
        assert_eq!((beside.unjudged, beside.unweighted.len()), (1, 0));
        let away = judge(&[answer(zero, 300, 310, "v9")], &[gap]);
        assert_eq!((away.unjudged, away.unweighted.len()), (0, 1));
    }

    #[test]
    fn failures_are_counted_by_whether_somebody_listened() {
        let zero = clock::now();
        let failures = [Failure::Refused, Failure::Silence, Failure::Cut("here".to_owned())];
        let exchanges = failures.map(|failure| exchange(zero, 10, 20, Outcome::Failed(failure)));
        let verdict = judge(&exchanges, &[spells(zero)]);
        assert_eq!((verdict.requests, verdict.refused, verdict.errors.len(), verdict.answered()), (3, 1, 2, 0));
        assert!(verdict.to_string().contains("cut: here"), "{verdict}");
    }
}
