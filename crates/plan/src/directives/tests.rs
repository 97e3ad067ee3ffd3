//! Tests of the directives of one Rollout, and of their merge with those of others.

use super::*;
use rollora_api::rollout::{Rollout, status::RejectedAdapter};

fn ids(names: &[&str]) -> Vec<AdapterId> {
    names.iter().map(|name| AdapterId::new(*name).unwrap()).collect()
}

fn spec() -> RolloutSpec {
    let text = "apiVersion: rollora.dev/v1alpha1\nkind: Rollout\nmetadata: {name: a}\nspec:\n  model: a\n  poolRef: \
                {name: p}\n  adapter: {follow: {pattern: \"a-v*\"}}\n  adaptersRef: {name: f}\n";
    Rollout::from_yaml(text).unwrap().spec
}

fn status(admitted: &[&str]) -> RolloutStatus {
    let mut status = RolloutStatus::default();
    status.admission.admitted = ids(admitted);
    status
}

#[test]
fn admitted_ids_serve_until_their_cleanup_begins() {
    use RetirementState as State;
    let cases = [
        (State::Waiting, true),
        (State::StillInUse, true),
        (State::Returning, true),
        (State::Unlisting, false),
        (State::Unloading, false),
        (State::Suggested, false),
        (State::Kept, false),
        (State::Relisted, false),
        (State::Gone, false),
    ];
    for (state, serves) in cases {
        let mut status = status(&["a-v1"]);
        let since = jiff::Timestamp::UNIX_EPOCH;
        status.retired = vec![RetiredAdapter {
            id: ids(&["a-v1"])[0].clone(),
            since,
            state,
            was_stable: false,
            reason: String::new(),
        }];
        assert_eq!(own_directives(&spec(), &status).serving == ids(&["a-v1"]), serves, "{state:?}");
    }
}

#[test]
fn rejected_id_drains_before_it_is_rejected_and_keeps_pilot() {
    let mut status = status(&["a-v2"]);
    status.rejected = vec![RejectedAdapter { id: ids(&["a-v2"])[0].clone(), reason: String::new() }];
    status.admission.pilot = Some(Pilot { id: ids(&["a-v2"])[0].clone(), pod: "p".to_owned() });
    let draining = own_directives(&spec(), &status);
    assert_eq!((draining.rejected, draining.serving), (Vec::new(), ids(&["a-v2"])));
    status.admission.admitted.clear();
    status.admission.retained = ids(&["a-v2"]);
    let held = own_directives(&spec(), &status);
    assert_eq!(
        (held.rejected, held.serving),
        (ids(&["a-v2"]), ids(&["a-v2"])),
        "a retained id is neither loaded nor unloaded"
    );
    status.admission.retained.clear();
    let rejected = own_directives(&spec(), &status);
    assert_eq!((rejected.rejected.clone(), rejected.pilot_ids("p").count()), (ids(&["a-v2"]), 0));
    status.admission.past_pilots.extend(status.admission.pilot.take());
    let later = merge(&rejected, own_directives(&spec(), &status), &[]);
    assert_eq!(later.pilots, rejected.pilots, "the pilot of a rejected id is kept while another id is tried");
    status.rejected.clear();
    assert_eq!(merge(&later, own_directives(&spec(), &status), &[]).pilots, Vec::new());
}

#[test]
fn stable_id_outside_the_pattern_is_governed() {
    let mut status = status(&["old"]);
    status.revision.stable = ids(&["old"]).pop();
    assert_eq!(own_directives(&spec(), &status).managed, ["a-v*", "old"]);
}

#[test]
fn merge_keeps_foreign_entries_and_drops_ungoverned_ones() {
    let current = OperatorDirectives {
        managed: vec!["gone-v*".to_owned()],
        admitted: ids(&["a-v1", "b-v1", "gone-v1"]),
        serving: ids(&["b-v1", "gone-v1"]),
        ..OperatorDirectives::default()
    };
    let mine = own_directives(&spec(), &status(&["a-v2"]));
    let other = OperatorDirectives { managed: vec!["b-v*".to_owned()], ..OperatorDirectives::default() };
    let merged = merge(&current, mine.clone(), std::slice::from_ref(&other));
    assert_eq!(merged.managed, ["a-v*", "b-v*"]);
    assert_eq!(merged.admitted, ids(&["a-v2", "b-v1"]));
    assert_eq!(merged.serving, ids(&["a-v2", "b-v1"]));
    assert_eq!(merge(&merged, mine, &[other]), merged, "a second merge changes nothing");
}

#[test]
fn ids_used_by_others_survive_a_wider_pattern() {
    let other = OperatorDirectives {
        managed: vec!["a-v-b*".to_owned()],
        admitted: ids(&["a-v-b1"]),
        serving: ids(&["a-v-b1"]),
        rejected: ids(&["a-v-b0"]),
        ..OperatorDirectives::default()
    };
    let current = OperatorDirectives { admitted: ids(&["a-v-b1", "a-v-b9"]), ..other.clone() };
    let merged = merge(&current, own_directives(&spec(), &status(&["a-v2"])), &[other]);
    assert_eq!(merged.admitted, ids(&["a-v-b1", "a-v2"]), "other ids that only our pattern matches are dropped");
    assert_eq!((merged.serving, merged.rejected), (ids(&["a-v-b1", "a-v2"]), ids(&["a-v-b0"])));
}

#[test]
fn entries_outside_our_patterns_are_foreign() {
    let current = OperatorDirectives {
        managed: vec!["a-v*".to_owned(), "b-v1".to_owned()],
        admitted: ids(&["a-v1", "b-v1"]),
        serving: ids(&["a-v1", "b-v1"]),
        rejected: ids(&["a-v2"]),
        ..OperatorDirectives::default()
    };
    let theirs = foreign_entries(&current, &["a-v*".to_owned()]);
    let expected = OperatorDirectives {
        managed: vec!["b-v1".to_owned()],
        admitted: ids(&["b-v1"]),
        serving: ids(&["b-v1"]),
        ..OperatorDirectives::default()
    };
    assert_eq!(theirs, expected);
    let mine = OperatorDirectives {
        managed: vec!["a-v*".to_owned()],
        admitted: ids(&["a-v1"]),
        ..OperatorDirectives::default()
    };
    assert_eq!(
        merge(&current, mine, &[theirs]).serving,
        ids(&["b-v1"]),
        "an id that serves a Rollout with a lost status stays"
    );
}
