//! Tests of decisions while parts of the observed state are missing, and of their requeue times.

use super::*;
use rollora_api::rollout::status::{Phase, StepState, StepStatus};
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn rollout(status: &Value) -> Rollout {
    serde_json::from_value(json!({
        "apiVersion": "rollora.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": "chat"},
        "spec": {
            "model": "chat", "poolRef": {"name": "pool"}, "adapter": {"id": "chat-v1"}, "adaptersRef": {"name": "map"},
        },
        "status": status,
    }))
    .unwrap()
}

/// Returns a complete observed state except for the list of Rollouts.
fn without_rollouts() -> ObservedState {
    let file = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - {id: chat-v1, source: /a}\n";
    let adapters = AdaptersConfigMap {
        version: "1".to_owned(),
        first_read_at: now(),
        hash: rollora_api::adapters::content_hash(file, None),
        user_text: file.to_owned(),
        file: AdaptersFile::parse(file).map(|parsed| parsed.file).map_err(|error| error.to_string()),
        directives: rollora_api::operator_directives::OperatorDirectives::default(),
        gitops_owner: None,
    };
    ObservedState {
        adapters: Ok(Some(adapters)),
        rewrites: Ok(Vec::new()),
        servers: Ok(Vec::new()),
        other_pool_servers: Ok(Vec::new()),
        routers: Ok(Vec::new()),
        poll_after: Duration::from_secs(1),
        rollouts: Err(ObserveError::Unavailable("the API server is down".to_owned())),
        new_rewrite_group: RewriteGroup::Current,
        supports_finalizers: false,
        write_refusal: None,
        overwritten_sequence: None,
    }
}

#[test]
fn nothing_begins_while_rollouts_cannot_be_listed() {
    let rollout = rollout(&Value::Null);
    let decision = decide(&DecisionInput { rollout: &rollout, observed: &without_rollouts() }, now());
    assert_eq!((decision.status.phase, decision.status.revision.number), (Phase::Pending, 0));
    assert!(decision.status.message.contains("the other Rollouts cannot be listed: the API server is down"));
    assert!(decision.requeue_after.is_some(), "the decision is requeued");
}

#[test]
fn conflict_persists_while_rollouts_cannot_be_listed() {
    let stalled = json!({
        "type": "Stalled", "status": "True", "reason": "Conflict", "message": "Rollout other is older",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let rollout = rollout(&json!({ "phase": "Invalid", "conditions": [stalled] }));
    let decision = decide(&DecisionInput { rollout: &rollout, observed: &without_rollouts() }, now());
    assert_eq!((decision.status.phase, decision.effects.len()), (Phase::Invalid, 0));
    assert_eq!(decision.status.message, "Rollout other is older");
}

#[test]
fn polling_slows_down_after_the_fast_window() {
    let (rollout, observed) = (rollout(&Value::Null), without_rollouts());
    let poll_interval = |waited: i64| {
        let step = StepStatus {
            index: 0,
            state: StepState::AwaitingRouters,
            entered_at: now(),
            observed_millis: waited,
            observed_at: Some(now()),
        };
        let status = RolloutStatus { step: Some(step), ..RolloutStatus::default() };
        DecisionContext::new(&DecisionInput { rollout: &rollout, observed: &observed }, now())
            .requeue_after(&status, [RequeueWhen::Soon].into_iter())
    };
    assert_eq!([0, 10_000, 10_001].map(poll_interval), [1, 1, 5].map(|seconds| Some(Duration::from_secs(seconds))));
}

#[test]
fn idle_file_version_writes_are_spread_by_jitter() {
    let observed = without_rollouts();
    let due = |name: &str| {
        let mut rollout = rollout(&Value::Null);
        rollout.metadata.uid = Some(name.to_owned());
        status::file_change_due(&DecisionContext::new(&DecisionInput { rollout: &rollout, observed: &observed }, now()))
    };
    assert_eq!(due("a"), due("a"));
    let due: std::collections::BTreeSet<_> = ["a", "b", "c", "d", "e", "f", "g", "h"].map(due).into();
    assert!(due.len() > 4, "{due:?}");
    assert!(due.iter().all(|due| (60..120).contains(&due.duration_since(now()).as_secs())), "{due:?}");
}

/// Returns a Rollout at 50/50 with which an older one overlaps since a moment ago.
fn overlapped(annotations: &Value) -> (Rollout, ObservedState) {
    let step = json!({ "index": 3, "state": "Pausing", "enteredAt": "2026-01-01T00:00:00Z" });
    let weights = json!({
        "desired": [{"id": "chat-v1", "weight": 50}, {"id": "chat-v2", "weight": 50}], "sequence": 3, "applied": 3,
    });
    let mut rollout = rollout(&json!({
        "revision": {"number": 2, "stable": "chat-v1", "desired": "chat-v2"}, "step": step, "weights": weights,
    }));
    let metadata = json!({
        "name": "chat", "uid": "uid", "creationTimestamp": "2026-01-01T00:00:02Z", "annotations": annotations,
    });
    rollout.metadata = serde_json::from_value(metadata).unwrap();
    let older: Rollout = serde_json::from_value(json!({
        "apiVersion": "rollora.dev/v1alpha1", "kind": "Rollout",
        "metadata": {"name": "all", "creationTimestamp": "2026-01-01T00:00:01Z"},
        "spec": {
            "model": "all", "poolRef": {"name": "pool"}, "adapter": {"follow": {"pattern": "chat-*"}},
            "adaptersRef": {"name": "map"},
        },
    }))
    .unwrap();
    let written = json!({ "weights.rollora.dev/uid": "3", "rollora.dev/stable": "chat-v1" });
    let rewrite: InferenceModelRewrite = serde_json::from_value(json!({
        "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite",
        "metadata": {"name": "chat", "uid": "r", "annotations": written},
        "spec": {"poolRef": {"name": "pool"}, "rules": [{
            "matches": [{"model": {"type": "Exact", "value": "chat"}}],
            "targets": [{"modelRewrite": "chat-v1", "weight": 50}, {"modelRewrite": "chat-v2", "weight": 50}],
        }]},
    }))
    .unwrap();
    let observed = ObservedState {
        rollouts: Ok(vec![Arc::new(rollout.clone()), Arc::new(older)]),
        rewrites: Ok(vec![Arc::new(rewrite)]),
        ..without_rollouts()
    };
    (rollout, observed)
}

#[test]
fn abort_is_applied_during_a_conflict() {
    let (rollout, observed) = overlapped(&json!({}));
    let stalled_decision = decide(&DecisionInput { rollout: &rollout, observed: &observed }, now());
    assert_eq!(
        (stalled_decision.status.phase, stalled_decision.effects.len()),
        (Phase::Invalid, 0),
        "{}",
        stalled_decision.status.message
    );
    let intent = json!({ "id": "1", "verb": "abort", "revision": 2, "claimedBy": "x".repeat(2000) }).to_string();
    let (rollout, mut observed) = overlapped(&json!({ "rollora.dev/intent": intent }));
    for rollouts in [observed.rollouts.clone(), Err(ObserveError::NotAttempted)] {
        let mut rollout = rollout.clone();
        rollout.status.as_mut().unwrap().conditions = stalled_decision.status.conditions.clone();
        observed.rollouts = rollouts;
        let aborted = decide(&DecisionInput { rollout: &rollout, observed: &observed }, now());
        let Some(Effect::WriteRewrite(rewrite)) = aborted.effects.first() else { panic!("{:?}", aborted.effects) };
        let targets: Vec<&str> =
            rewrite.spec.rules[0].targets.iter().map(|target| target.model_rewrite.as_str()).collect();
        assert_eq!(targets, ["chat-v1"]);
        let action = aborted.status.last_action.unwrap();
        assert!(action.outcome.starts_with("done"), "{}", action.outcome);
        assert_eq!(action.claimed_by.map(|requester| requester.len()), Some(100), "claimedBy is cut to its limit");
    }
}

#[test]
fn unobservable_conflict_is_requeued() {
    let (mut rollout, mut observed) = overlapped(&json!({}));
    let stalled_decision = decide(&DecisionInput { rollout: &rollout, observed: &observed }, now());
    assert_eq!(stalled_decision.requeue_after, None);
    rollout.status = Some(stalled_decision.status);
    observed.rollouts = Err(ObserveError::Unavailable("the API server is down".to_owned()));
    let decision = decide(&DecisionInput { rollout: &rollout, observed: &observed }, now());
    assert_eq!(decision.status.phase, Phase::Invalid);
    assert!(decision.requeue_after.is_some());
}

#[test]
fn deletion_message_names_what_blocks_it() {
    let (mut rollout, mut observed) = overlapped(&json!({}));
    rollout.metadata.deletion_timestamp = Some(now());
    observed.rewrites = Err(ObserveError::Invalid("the kind is not installed".to_owned()));
    observed.write_refusal = Some("the status was refused".to_owned());
    let decision = decide(&DecisionInput { rollout: &rollout, observed: &observed }, now());
    let message = decision.status.message;
    assert!(message.ends_with("cannot be read: the kind is not installed; the status was refused"), "{message}");
}

#[test]
fn server_that_lost_a_serving_adapter_is_named_and_polled() {
    use rollora_api::sidecar_status::{AdapterState, AdapterStatus, ServerIdentity, SidecarStatus};
    let (mut rollout, mut observed) = overlapped(&json!({}));
    rollout.status = serde_json::from_value(json!({
        "revision": {"number": 1, "stable": "chat-v1", "desired": "chat-v1"},
        "step": {"index": 0, "state": "Done", "enteredAt": "2026-01-01T00:00:00Z"},
        "weights": {"desired": [{"id": "chat-v1", "weight": 100}], "sequence": 3, "applied": 3},
        "admission": {"admitted": ["chat-v1"]},
    }))
    .unwrap();
    observed.rollouts = Ok(vec![Arc::new(rollout.clone())]);
    let mut decide_with = |state| {
        let server = ServerIdentity { endpoint: "e".to_owned(), start: "1".to_owned() };
        let adapters = vec![AdapterStatus::new(rollout.spec.adapter.id.clone().unwrap(), state)];
        let status = SidecarStatus { server: Some(server), adapters, max_loras: Some(2), ..SidecarStatus::default() };
        observed.servers = Ok(vec![ObservedServer::ready("pod-a", status)]);
        let decision = decide(&DecisionInput { rollout: &rollout, observed: &observed }, now());
        let seconds = decision.requeue_after.map(|requeue| requeue.as_secs());
        (decision.status.message, seconds)
    };
    let (message, requeue) = decide_with(AdapterState::Failed);
    assert!(message.starts_with("chat-v1 has all traffic, and pod-a lacks chat-v1"), "{message}");
    assert!(requeue.is_some_and(|seconds| seconds <= SLOW_POLL_INTERVAL.as_secs()), "{requeue:?}");
    let (message, _) = decide_with(AdapterState::Verified);
    assert!(message.starts_with("chat-v1 serves all requests"), "{message}");
}
