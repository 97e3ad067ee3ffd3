use super::*;
use crate::traffic::{RequestOutcome, ResponseMode};
use rollora_testbed::clock;
use std::time::Duration;

fn verdict(exchanges: &[RequestRecord], routers: &[RouterHistory]) -> TrafficVerdict {
    TrafficRecord { exchanges: exchanges.to_vec(), routers: routers.to_vec(), outages: vec![] }.verdict()
}

/// A router that exists for the whole test.
fn router(zero: Instant, intervals: Vec<RuleInterval>) -> RouterHistory {
    RouterHistory { observed_since: zero, gone_at: None, intervals }
}

/// Sequences 1 (v1 alone, to 100 ms), 2 (both, 90 to 200 ms), 3 (v2 alone, from 190 ms).
fn sample_intervals(zero: Instant) -> Vec<RuleInterval> {
    let at = |millis| zero + Duration::from_millis(millis);
    let interval = |sequence, from, until: Option<u64>, ids: &[&str]| RuleInterval {
        from: at(from),
        until: until.map(at),
        sequence,
        weights: ids.iter().map(|id| ((*id).to_owned(), 50)).collect(),
    };
    vec![interval(1, 0, Some(100), &["v1"]), interval(2, 90, Some(200), &["v1", "v2"]), interval(3, 190, None, &["v2"])]
}

fn exchange(zero: Instant, start: u64, head: u64, outcome: RequestOutcome) -> RequestRecord {
    let at = |millis| zero + Duration::from_millis(millis);
    RequestRecord {
        mode: ResponseMode::Json,
        start: at(start),
        first_byte: Some(at(head)),
        end: at(head + 500),
        outcome,
    }
}

fn answer(zero: Instant, start: u64, head: u64, model: &str) -> RequestRecord {
    exchange(zero, start, head, RequestOutcome::Succeeded { model: model.to_owned(), text: String::new() })
}

#[test]
fn propagation_delay_counts_the_last_router() {
    let zero = clock::now();
    let at = |millis| zero + Duration::from_millis(millis);
    let changes = |changes: &[u64]| {
        let interval =
            |until: Option<u64>| RuleInterval { from: zero, until: until.map(at), sequence: 1, weights: Vec::new() };
        router(zero, changes.iter().map(|change| interval(Some(*change))).chain([interval(None)]).collect())
    };
    let routers = vec![changes(&[15, 120]), changes(&[18])];
    let record = TrafficRecord { exchanges: Vec::new(), routers, outages: Vec::new() };
    // Both routers applied the first write, one router the second, and the third changed nothing.
    assert_eq!(record.propagation_delays(&[at(10), at(100), at(200)]), [Duration::from_millis(8)]);
    assert!(record.propagation_delays(&[]).is_empty());
}

#[test]
fn answer_needs_weight_in_a_rule_active_before_its_first_byte() {
    let zero = clock::now();
    for (start, head, model, right) in [
        (10, 20, "v1", true),
        (10, 20, "v2", false),
        (10, 95, "v2", true), // begun under 1, perhaps chosen under 2
        (150, 160, "v1", true),
        (150, 160, "v2", true),
        (195, 198, "v1", true), // 2 may have been active until 200
        (201, 220, "v1", false),
        (201, 220, "v2", true),
        (201, 220, "v3", false),
    ] {
        let verdict = verdict(&[answer(zero, start, head, model)], &[router(zero, sample_intervals(zero))]);
        assert_eq!(verdict.zero_weight_answers.is_empty(), right, "{model} from {start} to {head}: {verdict}");
        assert_eq!(verdict.inconclusive, 0);
    }
}

#[test]
fn weight_after_the_first_byte_does_not_justify_an_answer() {
    let zero = clock::now();
    // The response ends at 520 ms, when v2 has weight; its first byte came when v2 had none.
    assert_eq!(
        verdict(&[answer(zero, 10, 20, "v2")], &[router(zero, sample_intervals(zero))]).zero_weight_answers.len(),
        1
    );
}

#[test]
fn answer_is_justified_by_a_router_with_the_old_rule() {
    let zero = clock::now();
    let slow = vec![RuleInterval { until: None, ..sample_intervals(zero)[0].clone() }];
    let late = answer(zero, 300, 310, "v1");
    assert_eq!(
        verdict(std::slice::from_ref(&late), &[router(zero, sample_intervals(zero))]).zero_weight_answers.len(),
        1
    );
    assert_eq!(
        verdict(&[late], &[router(zero, sample_intervals(zero)), router(zero, slow)]).zero_weight_answers.len(),
        0
    );
}

#[test]
fn answer_near_a_missed_rule_is_inconclusive() {
    let zero = clock::now();
    let mut gap = sample_intervals(zero);
    gap.remove(1);
    // From 1 to 3: the missed rule was active at some time between the last poll with 1 and the first with 3.
    gap[0].until = Some(zero + Duration::from_millis(200));
    let near = verdict(&[answer(zero, 192, 195, "v9")], &[router(zero, gap.clone())]);
    assert_eq!((near.inconclusive, near.zero_weight_answers.len()), (1, 0));
    let away = verdict(&[answer(zero, 300, 310, "v9")], &[router(zero, gap)]);
    assert_eq!((away.inconclusive, away.zero_weight_answers.len()), (0, 1));
}

#[test]
fn router_counts_only_while_it_exists() {
    let zero = clock::now();
    let at = |millis| zero + Duration::from_millis(millis);
    let interval = |from: u64, until: Option<u64>, id: &str| RuleInterval {
        from: at(from),
        until: until.map(at),
        sequence: 1,
        weights: vec![(id.to_owned(), 100)],
    };
    let stable = router(zero, vec![interval(0, None, "v1")]);
    // This router appears at 100 ms, reports its rule at 110 ms, and disappears at 200 ms.
    let temporary = RouterHistory {
        observed_since: at(100),
        gone_at: Some(at(200)),
        intervals: vec![interval(110, Some(200), "v9")],
    };
    for (start, head, right, inconclusive) in [
        (10, 20, false, 0),
        (90, 105, true, 1), // it existed, and no poll had observed its rule
        (150, 160, true, 0),
        (190, 250, true, 0),
        (201, 250, false, 0),
    ] {
        let verdict = verdict(&[answer(zero, start, head, "v9")], &[stable.clone(), temporary.clone()]);
        assert_eq!(verdict.zero_weight_answers.is_empty(), right, "from {start} to {head}: {verdict}");
        assert_eq!(verdict.inconclusive, inconclusive, "from {start} to {head}: {verdict}");
    }
}

#[test]
fn failures_are_errors_unless_an_outage_explains_them() {
    use {
        KilledProcess::{Gateway, Server},
        RequestFailure::{ConnectionRefused, TimedOut},
    };
    let zero = clock::now();
    let at = |millis| zero + Duration::from_millis(millis);
    let cut = || RequestFailure::Truncated("here".to_owned());
    let outage = |of| ProcessOutage { target: of, from: at(100), dead_at: at(102), until: Some(at(200)) };
    for (killed, start, end, failure, expected) in [
        (None, 50, 60, ConnectionRefused, "error"),
        (None, 50, 60, cut(), "error"),
        (Some(Gateway), 50, 99, cut(), "error"),
        (Some(Gateway), 50, 101, cut(), "in flight"),
        (Some(Gateway), 101, 105, cut(), "in flight"),
        (Some(Gateway), 103, 105, cut(), "error"),
        (Some(Gateway), 103, 105, ConnectionRefused, "refused"),
        (Some(Gateway), 201, 202, ConnectionRefused, "error"),
        (Some(Server), 103, 105, ConnectionRefused, "error"),
        (Some(Server), 50, 105, TimedOut, "in flight"),
        (Some(Server), 150, 160, TimedOut, "error"),
    ] {
        let outcome = RequestOutcome::Failed(failure.clone());
        let exchange =
            RequestRecord { mode: ResponseMode::Json, start: at(start), first_byte: None, end: at(end), outcome };
        let outages = killed.map(outage).into_iter().collect();
        let verdict =
            TrafficRecord { exchanges: vec![exchange], routers: vec![router(zero, sample_intervals(zero))], outages }
                .verdict();
        let counted = (verdict.gateway_refused, verdict.in_flight, verdict.errors.len());
        let expected_count = match expected {
            "refused" => (1, 0, 0),
            "in flight" => (0, 1, 0),
            _ => (0, 0, 1),
        };
        assert_eq!(counted, expected_count, "{failure} from {start} to {end} with {killed:?}");
    }
}

#[test]
fn sample_has_only_requests_that_one_rule_decided() {
    let zero = clock::now();
    let mut exchanges = vec![answer(zero, 95, 99, "v1"), answer(zero, 185, 195, "v2")];
    exchanges.extend((0..40).map(|index| answer(zero, 110, 120, if index % 2 == 0 { "v1" } else { "v2" })));
    let record = TrafficRecord { exchanges, routers: vec![router(zero, sample_intervals(zero))], outages: vec![] };
    let sample = &record.split_samples()[1];
    assert_eq!((sample.total(), sample.by_model["v1"], sample.by_model["v2"]), (40, 20, 20));
    assert!(sample.matches_weights());
}

#[test]
fn late_router_shortens_the_sample_of_the_next_rule() {
    let zero = clock::now();
    let mut late = sample_intervals(zero);
    late[0].until = Some(zero + Duration::from_millis(130));
    let exchanges = vec![answer(zero, 110, 120, "v1"), answer(zero, 140, 150, "v2")];
    let routers = vec![router(zero, sample_intervals(zero)), router(zero, late)];
    let record = TrafficRecord { exchanges, routers, outages: vec![] };
    assert_eq!(record.split_samples()[1].by_model, [("v2".to_owned(), 1)].into());
}

#[test]
fn sample_far_from_its_weights_does_not_match() {
    let sample = |v1, v2| SplitSample {
        weights: vec![("v1".to_owned(), 90), ("v2".to_owned(), 10)],
        by_model: [("v1".to_owned(), v1), ("v2".to_owned(), v2)].into(),
    };
    for (v1, v2, fits) in [(900, 100, true), (870, 130, true), (500, 500, false), (1000, 0, false), (18, 2, true)] {
        assert_eq!(sample(v1, v2).matches_weights(), fits, "{v1} and {v2}");
    }
    let all = SplitSample { weights: vec![("v2".to_owned(), 100)], by_model: [("v2".to_owned(), 7)].into() };
    assert!(all.matches_weights());
    let one_too_many = SplitSample { by_model: [("v1".to_owned(), 1), ("v2".to_owned(), 7)].into(), ..all };
    assert!(!one_too_many.matches_weights());
}
