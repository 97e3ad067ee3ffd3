//! Every answer that vLLM gives, and everything that can come in its place, against what the sidecar does about it.
//!
//! The answers of the recording are sent by a real connection to the real client, and what the client makes of them goes
//! into the deciding half. [`matrix`] says what has to come of each; an answer that no row of it is about fails the test,
//! and so does a row that no answer is about.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod matrix;
mod outcome;
mod reply;

use matrix::{MATRIX, MatrixRow, classify};
use outcome::ReplyOutcome;
use reply::{RequestKind, ServerReply, recorded, synthetic};
use std::collections::{BTreeMap, BTreeSet};

/// Each kind of answer, with everything that came of one of this kind and the first that it came of.
async fn outcomes(
    replies: Vec<(String, RequestKind, ServerReply)>,
) -> BTreeMap<(RequestKind, &'static str), Vec<(ReplyOutcome, String)>> {
    let mut outcomes = BTreeMap::<_, Vec<(ReplyOutcome, String)>>::new();
    for (label, asked, reply) in replies {
        let kind =
            classify(asked, &reply).unwrap_or_else(|| panic!("{label}: nobody says what {asked:?} {reply:?} means"));
        let outcome = ReplyOutcome::from_reply(asked, &reply).await;
        let seen = outcomes.entry((asked, kind)).or_default();
        if seen.iter().all(|(known, _)| *known != outcome) {
            seen.push((outcome, label));
        }
    }
    outcomes
}

#[tokio::test]
async fn every_answer_causes_what_the_matrix_says() {
    let (recorded, invented) = (recorded(), synthetic());
    assert!(recorded.len() > 550, "{} recorded answers to our calls", recorded.len());
    let outcomes = outcomes(recorded.into_iter().chain(invented).collect()).await;
    let mut wrong = Vec::new();
    for ((asked, answer), seen) in &outcomes {
        let row = MATRIX.iter().find(|row| (row.request, row.reply_kind) == (*asked, *answer)).map(MatrixRow::outcome);
        for (outcome, label) in seen.iter().filter(|(outcome, _)| Some(outcome) != row.as_ref()) {
            let row = row.as_ref().map_or_else(|| "no row".to_owned(), ReplyOutcome::to_string);
            wrong.push(format!("    row({asked:?}, {answer:?}, {outcome}), // {label}, and the matrix says: {row}"));
        }
    }
    for row in MATRIX.iter().filter(|row| !outcomes.contains_key(&(row.request, row.reply_kind))) {
        wrong.push(format!("{:?}, {}: no answer is like this", row.request, row.reply_kind));
    }
    let rows: BTreeSet<_> = MATRIX.iter().map(|row| (row.request, row.reply_kind)).collect();
    assert_eq!(rows.len(), MATRIX.len(), "two rows are about the same");
    assert!(wrong.is_empty(), "{} rows are wrong\n{}", wrong.len(), wrong.join("\n"));
}
