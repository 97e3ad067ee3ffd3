//! Tests the reaction of the sidecar to every answer of vLLM, and to everything that can come instead of one.
//!
//! Recorded answers are sent over a real connection to the real client, whose results go into the pure part of the
//! sidecar. [`matrix`] lists the expected outcome of each kind of answer. An answer without a row fails the test, and
//! so does a row without an answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod matrix;
mod outcome;
mod reply;

use matrix::{MATRIX, MatrixRow, classify};
use outcome::ReplyOutcome;
use reply::{RequestKind, ServerReply, recorded, synthetic};
use std::collections::{BTreeMap, BTreeSet};

/// Returns the distinct outcomes of each kind of answer, each with the label of the first answer that caused it.
async fn outcomes(
    replies: Vec<(String, RequestKind, ServerReply)>,
) -> BTreeMap<(RequestKind, &'static str), Vec<(ReplyOutcome, String)>> {
    let mut outcomes = BTreeMap::<_, Vec<(ReplyOutcome, String)>>::new();
    for (label, request, reply) in replies {
        let kind = classify(request, &reply).unwrap_or_else(|| panic!("{label}: {request:?} {reply:?} has no kind"));
        let outcome = ReplyOutcome::from_reply(request, &reply).await;
        let observed = outcomes.entry((request, kind)).or_default();
        if observed.iter().all(|(known, _)| *known != outcome) {
            observed.push((outcome, label));
        }
    }
    outcomes
}

#[tokio::test]
async fn every_answer_has_the_outcome_in_the_matrix() {
    let (recorded, synthetic_replies) = (recorded(), synthetic());
    assert!(recorded.len() > 550, "{} recorded answers", recorded.len());
    let outcomes = outcomes(recorded.into_iter().chain(synthetic_replies).collect()).await;
    let mut wrong = Vec::new();
    for ((request, reply_kind), observed) in &outcomes {
        let row =
            MATRIX.iter().find(|row| (row.request, row.reply_kind) == (*request, *reply_kind)).map(MatrixRow::outcome);
        for (outcome, label) in observed.iter().filter(|(outcome, _)| Some(outcome) != row.as_ref()) {
            let row = row.as_ref().map_or_else(|| "no row".to_owned(), ReplyOutcome::to_string);
            wrong.push(format!(
                "    row({request:?}, {reply_kind:?}, {outcome}), // {label}, but the matrix has: {row}"
            ));
        }
    }
    for row in MATRIX.iter().filter(|row| !outcomes.contains_key(&(row.request, row.reply_kind))) {
        wrong.push(format!("{:?}, {}: no answer of this kind", row.request, row.reply_kind));
    }
    let rows: BTreeSet<_> = MATRIX.iter().map(|row| (row.request, row.reply_kind)).collect();
    assert_eq!(rows.len(), MATRIX.len(), "two rows have the same request and kind");
    assert!(wrong.is_empty(), "{} rows are wrong\n{}", wrong.len(), wrong.join("\n"));
}
