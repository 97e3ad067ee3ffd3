//! Conditions of rewrites match the router: what `plan` reports as active is what the rule set of `router` applies.

use jiff::Timestamp;
use proptest::prelude::*;
use rollora_api::{
    condition::ConditionStatus,
    metadata::ObjectMeta,
    rewrite::{
        InferenceModelRewrite, ModelMatch, PoolRef, RewriteGroup, RewriteMatch, RewriteRule, RewriteSpec,
        condition::{ACCEPTED, CONFLICTED},
    },
};
use rollora_plan::rewrite_conditions::update_conditions;
use rollora_router::active_rules::ActiveRules;
use std::collections::{BTreeMap, BTreeSet};

const GROUPS: [RewriteGroup; 2] = [RewriteGroup::Current, RewriteGroup::Legacy];

fn pool() -> PoolRef {
    PoolRef { name: "pool".to_owned(), ..PoolRef::default() }
}

fn any_rule() -> impl Strategy<Value = RewriteRule> {
    let exact = |model: &str, kind: Option<&str>| RewriteMatch {
        model: ModelMatch { type_: kind.map(str::to_owned), value: model.to_owned() },
        ..RewriteMatch::default()
    };
    let matched = prop_oneof![
        Just(exact("m", None)),
        Just(exact("n", Some("Exact"))),
        Just(exact("o", None)),
        Just(exact("m", Some("Later"))),
    ];
    prop::collection::vec(matched, 0..3).prop_map(|matches| RewriteRule { matches, ..RewriteRule::default() })
}

/// Each name occurs at most once in a group, as on an API server.
fn any_rewrites() -> impl Strategy<Value = Vec<InferenceModelRewrite>> {
    let one = (0..2_usize, 0..4_u8, 0..3_i64, any::<bool>(), prop::collection::vec(any_rule(), 0..3));
    prop::collection::vec(one, 0..7).prop_map(|all| {
        let mut rewrites = BTreeMap::new();
        for (group, name, second, terminating, rules) in all {
            let name = format!("r{name}");
            let metadata = ObjectMeta {
                namespace: Some("ns".to_owned()),
                creation_timestamp: Timestamp::from_second(second).ok(),
                deletion_timestamp: terminating.then_some(Timestamp::UNIX_EPOCH).filter(|_| second == 0),
                uid: Some(format!("{group}-{name}")),
                ..ObjectMeta::named(&name)
            };
            let spec = RewriteSpec { pool_ref: pool(), rules, ..RewriteSpec::default() };
            let (api_version, kind) = (GROUPS[group].api_version().to_owned(), "InferenceModelRewrite".to_owned());
            rewrites.insert((group, name), InferenceModelRewrite { api_version, kind, metadata, spec, status: None });
        }
        rewrites.into_values().collect()
    })
}

proptest! {
    #[test]
    fn accepted_rewrite_is_active_at_routers(rewrites in any_rewrites()) {
        let router = ActiveRules::new(pool(), &GROUPS);
        router.reset(&rewrites);
        let rules = router.rules();
        let updated = update_conditions(&rewrites, Some(&BTreeSet::from(["pool".to_owned()])), Timestamp::UNIX_EPOCH);
        let present = rewrites.iter().filter(|rewrite| rewrite.metadata.deletion_timestamp.is_none()).count();
        prop_assert_eq!(updated.len(), present, "every rewrite gets its conditions");
        for rewrite in &updated {
            let uid = rewrite.metadata.uid.as_deref();
            let models: Vec<Option<&str>> = rewrite.spec.rules.iter().flat_map(RewriteRule::models).collect();
            let is_ours = |model: Option<&str>| {
                rules.find(model).is_some_and(|rule| Some(rule.report().uid.as_str()) == uid)
            };
            let each_once = BTreeSet::from_iter(&models).len() == models.len();
            let status = |kind: &str| {
                let conditions = &rewrite.status.as_ref().unwrap().conditions;
                conditions.iter().find(|condition| condition.type_ == kind).unwrap().status
            };
            let any_active = models.is_empty() || models.iter().copied().any(is_ours);
            prop_assert_eq!(status(ACCEPTED) == ConditionStatus::True, any_active, "{:?}", rewrite);
            let all_active = each_once && models.iter().copied().all(is_ours);
            prop_assert_eq!(status(CONFLICTED) == ConditionStatus::False, all_active, "{:?}", rewrite);
        }
    }
}
