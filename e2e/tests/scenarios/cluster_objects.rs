//! Objects of the API server as `kubectl` shows them, and the audit log's record of who wrote what.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use rollora_api::{
    condition::Condition,
    rewrite::RewriteGroup,
    rollout::{RolloutResource, RolloutStatus},
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    harness::Harness,
};
use rollora_testbed::control_plane::{
    AuditEvent, AuditLog, AuthorizationDecision, ControlPlane, rollora_crds, upstream_crds,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const POLL_INTERVAL: Duration = Duration::from_millis(20);
const MAX_POLLS: usize = 1000;

/// Returns options with an API server of its own, which a scenario may kill because no other test uses it.
pub(crate) async fn options_with_own_api_server() -> Result<ClusterOptions> {
    let plane = ControlPlane::start().await?;
    plane.install_crds(&[rollora_crds()?, upstream_crds()?].concat()).await?;
    Ok(ClusterOptions { control_plane: Some(plane), ..ClusterOptions::default() })
}

/// Polls until `read` returns a value, at most 20 seconds.
pub(crate) async fn wait_for<T>(what: &str, mut read: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..MAX_POLLS {
        if let Some(found) = read().await? {
            return Ok(found);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    anyhow::bail!("not within 20 seconds: {what}")
}

/// Returns the API for rewrites of a group in the environment's namespace.
pub(crate) fn rewrites_api(harness: &Harness<ClusterEnvironment>, group: RewriteGroup) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group.name(), "v1alpha2", "InferenceModelRewrite");
    Api::namespaced_with(harness.environment.client(), harness.environment.namespace(), &ApiResource::from_gvk(&kind))
}

/// Returns the names of all rewrites of a group; empty if the group is not served.
pub(crate) async fn rewrite_names(
    harness: &Harness<ClusterEnvironment>,
    group: RewriteGroup,
) -> Result<BTreeSet<String>> {
    match rewrites_api(harness, group).list(&ListParams::default()).await {
        Ok(list) => Ok(list.iter().map(kube::ResourceExt::name_any).collect()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(BTreeSet::new()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the API for Rollouts in the environment's namespace.
pub(crate) fn rollouts_api(harness: &Harness<ClusterEnvironment>) -> Api<RolloutResource> {
    Api::namespaced(harness.environment.client(), harness.environment.namespace())
}

/// Reads the status of a Rollout; the default if it has none.
pub(crate) async fn rollout_status(harness: &Harness<ClusterEnvironment>, rollout: &str) -> Result<RolloutStatus> {
    Ok(rollouts_api(harness).get(rollout).await?.status.unwrap_or_default())
}

/// The condition that reports why a Rollout cannot continue: type, reason, and words of the message.
#[derive(Debug, Clone)]
pub(crate) struct ExpectedCondition<'a> {
    pub(crate) condition: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) expected_words: &'a [&'a str],
}

impl ExpectedCondition<'_> {
    fn has_words(&self, text: &str) -> bool {
        self.expected_words.iter().all(|word| text.contains(word))
    }

    /// Waits until a condition of the Rollout and a warning event have this reason and these words.
    pub(crate) async fn wait_until_reported(&self, harness: &Harness<ClusterEnvironment>, rollout: &str) -> Result<()> {
        let find = async || {
            let conditions = rollout_status(harness, rollout).await?.conditions;
            let right = |it: &Condition| it.type_ == self.condition && it.reason == self.reason;
            Ok(conditions.into_iter().find(|it| right(it) && self.has_words(&it.message)))
        };
        if wait_for("the expected condition", find).await.is_err() {
            let conditions = rollout_status(harness, rollout).await?.conditions;
            let lines: Vec<_> = conditions.iter().map(|it| format!("{it:?}\n")).collect();
            anyhow::bail!("no condition of {rollout} is {self:?}:\n{}", lines.concat());
        }
        self.wait_for_event(harness, rollout).await
    }

    /// Waits until a warning event about the Rollout has this reason and these words.
    pub(crate) async fn wait_for_event(&self, harness: &Harness<ClusterEnvironment>, rollout: &str) -> Result<()> {
        let events: Api<Event> = Api::namespaced(harness.environment.client(), harness.environment.namespace());
        let about = |event: &Event| {
            let regarding = event.regarding.clone().unwrap_or_default();
            regarding.kind.as_deref() == Some("Rollout") && regarding.name.as_deref() == Some(rollout)
        };
        let right = |event: &Event| {
            let is_warning = event.type_.as_deref() == Some("Warning");
            let reason = event.reason.as_deref() == Some(self.reason);
            is_warning && reason && event.note.as_deref().is_some_and(|note| self.has_words(note))
        };
        let find = async || {
            let list = events.list(&ListParams::default()).await?;
            Ok(list.iter().any(|event| about(event) && right(event)).then_some(()))
        };
        if wait_for("the expected event", find).await.is_err() {
            let all = events.list(&ListParams::default()).await?;
            let all: Vec<_> =
                all.iter().filter(|event| about(event)).map(|event| format!("{:?}\n", event.note)).collect();
            anyhow::bail!("no warning event about {rollout} is {self:?}:\n{}", all.concat());
        }
        Ok(())
    }
}

/// The service account of the operator, as the audit log names it.
pub(crate) fn operator_user(harness: &Harness<ClusterEnvironment>) -> String {
    service_account_user(harness, "rollora-operator")
}

/// A service account in the environment's namespace, as the audit log names it.
pub(crate) fn service_account_user(harness: &Harness<ClusterEnvironment>, name: &str) -> String {
    format!("system:serviceaccount:{}:{name}", harness.environment.namespace())
}

/// Returns whether the event changed an object; refused attempts did not.
pub(crate) fn is_write(event: &AuditEvent) -> bool {
    let writes = matches!(event.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
    writes && event.code < 400 && event.decision == AuthorizationDecision::Allowed
}

/// Returns the writes other than statuses of these Rollouts and of rewrites, events, and the Lease.
pub(crate) fn other_writes(events: &[AuditEvent], rollouts: &[&str]) -> Vec<String> {
    let is_own = |event: &AuditEvent| match event.resource.as_str() {
        "events" | "leases" => true,
        "inferencemodelrewrites" => event.subresource == "status",
        "rollouts" => event.subresource == "status" && rollouts.contains(&event.name.as_str()),
        _ => false,
    };
    let others = events.iter().filter(|event| is_write(event) && !is_own(event));
    others.map(|event| format!("{} {}/{} {}", event.verb, event.resource, event.subresource, event.name)).collect()
}

/// Reads one rewrite; fails if it does not exist.
pub(crate) async fn get_rewrite(
    harness: &Harness<ClusterEnvironment>,
    group: RewriteGroup,
    name: &str,
) -> Result<DynamicObject> {
    let found = rewrites_api(harness, group).get_opt(name).await?;
    found.with_context(|| format!("no rewrite {name} in the group {}", group.name()))
}

/// Returns the written state of an object, without its status.
pub(crate) fn object_revision(object: &DynamicObject) -> (Option<i64>, BTreeMap<String, String>) {
    (object.metadata.generation, object.annotations().clone())
}

/// Fails unless the rewrites of the namespace are exactly these.
pub(crate) async fn check_rewrites(
    harness: &Harness<ClusterEnvironment>,
    current: &[&str],
    legacy: &[&str],
) -> Result<()> {
    for (group, expected) in [(RewriteGroup::Current, current), (RewriteGroup::Legacy, legacy)] {
        let found = rewrite_names(harness, group).await?;
        let expected: BTreeSet<_> = expected.iter().map(|&name| name.to_owned()).collect();
        ensure!(found == expected, "the rewrites of {} are {found:?}, not {expected:?}", group.name());
    }
    Ok(())
}

/// Waits until the operator and the routers watch a group.
pub(crate) async fn wait_until_watched(
    harness: &Harness<ClusterEnvironment>,
    audit: &AuditLog,
    group: RewriteGroup,
) -> Result<()> {
    for user in [operator_user(harness), service_account_user(harness, "rollora-ext-proc")] {
        let watched = async || {
            let events = audit.events_of_user(&user)?;
            let watch = events.iter().find(|event| event.verb == "watch" && event.group == group.name());
            Ok(watch.map(|_| ()))
        };
        wait_for(&format!("{user} watches the rewrites of {}", group.name()), watched).await?;
    }
    Ok(())
}
