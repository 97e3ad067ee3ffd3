//! The shipped roles grant exactly what the programs use, and a missing permission is reported.

use crate::cluster_objects::{
    ExpectedCondition, operator_user, options_with_own_api_server, other_writes, rewrites_api, rollout_status,
    rollouts_api, service_account_user, wait_for, wait_until_watched,
};
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::rbac::v1::Role;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use rollora_api::{
    condition::{ConditionStatus, condition_type::STALLED, reason},
    rewrite::RewriteGroup::{self, Current, Legacy},
    rollout::status::Phase,
    router_report::RulesReport,
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{WaitCondition, all_servers_ready, cleaned_up, has_phase, served_by, succeeded, traffic_split},
    files::{RolloutManifest, RolloutStep},
    harness::{Environment as _, Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::{
    control_plane::{AuditEvent, AuditLog, AuthorizationDecision, ControlPlane, UPSTREAM_CRDS, rollora_crds},
    guide::{MODEL, REWRITE, V1, V2, V3},
    manifests::{self, Manifests},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt, fs, sync::OnceLock, time::Duration};

/// The shipped roles, and the service account of each.
const SHIPPED_ROLES: [(&str, &str); 4] = [
    ("operator/role/cluster-role.yaml", "rollora-operator"),
    ("operator/workload/lease-role.yaml", "rollora-operator"),
    ("ext-proc/role.yaml", "rollora-ext-proc"),
    ("vllm-watch/role.yaml", "vllm-qwen3-32b"),
];

/// One verb on one resource that a role grants.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    file: &'static str,
    account: &'static str,
    group: String,
    /// The resource with its subresource: `rollouts/status`.
    resource: String,
    verb: String,
    /// The only object that the grant covers; `None` covers all.
    name: Option<String>,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, group, resource, verb, name, .. } = self;
        write!(f, "manifests/{file}: apiGroup {group:?}, resource {resource}, verb {verb}")?;
        name.iter().try_for_each(|name| write!(f, ", resourceName {name}"))
    }
}

fn shipped_grants() -> Result<Vec<Grant>> {
    let mut grants = Vec::new();
    for (file, account) in SHIPPED_ROLES {
        let shipped = Manifests::parse(&fs::read_to_string(manifests::manifests_dir().join(file))?)?;
        let is_role = |object: &&Value| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"));
        let rules =
            shipped.objects.iter().filter(is_role).flat_map(|role| role["rules"].as_array().into_iter().flatten());
        for rule in rules {
            let texts = |field: &str| -> Vec<String> {
                let texts = rule[field].as_array().into_iter().flatten();
                texts.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let mut names: Vec<_> = texts("resourceNames").into_iter().map(Some).collect();
            if names.is_empty() {
                names.push(None);
            }
            for group in texts("apiGroups") {
                for resource in texts("resources") {
                    for verb in texts("verbs") {
                        let each = |name: &Option<String>| Grant {
                            file,
                            account,
                            group: group.clone(),
                            resource: resource.clone(),
                            verb: verb.clone(),
                            name: name.clone(),
                        };
                        grants.extend(names.iter().map(each));
                    }
                }
            }
        }
    }
    Ok(grants)
}

fn resource_path(event: &AuditEvent) -> String {
    let separator = if event.subresource.is_empty() { "" } else { "/" };
    format!("{}{separator}{}", event.resource, event.subresource)
}

fn uses_grant(event: &AuditEvent, grant: &Grant, user: &str) -> bool {
    event.user == user
        && event.decision == AuthorizationDecision::Allowed
        && (200..300).contains(&event.code)
        && event.group == grant.group
        && resource_path(event) == grant.resource
        && event.verb == grant.verb
        && grant.name.as_ref().is_none_or(|name| *name == event.name)
}

/// Returns one message per grant that no request used, and one per request that was forbidden.
fn permission_findings(events: &[AuditEvent], grants: &[Grant], user: impl Fn(&str) -> String) -> BTreeSet<String> {
    let is_used = |grant: &Grant| events.iter().any(|event| uses_grant(event, grant, &user(grant.account)));
    let unused = grants.iter().filter(|grant| !is_used(grant));
    let unused = unused.map(|grant| format!("unused grant: {grant}"));
    let users: BTreeSet<_> = grants.iter().map(|grant| user(grant.account)).collect();
    let is_forbidden =
        |event: &&AuditEvent| users.contains(&event.user) && event.decision != AuthorizationDecision::Allowed;
    let missing = events.iter().filter(is_forbidden).map(|event| {
        let AuditEvent { user, verb, group, name, code, .. } = event;
        format!("missing: {user} may not {verb} {} {name:?} of group {group:?} ({code})", resource_path(event))
    });
    unused.chain(missing).collect()
}

#[test]
fn permission_findings_name_unused_and_missing_grants() {
    let grant = |resource: &str, verb: &str| Grant {
        file: "a/role.yaml",
        account: "one",
        group: String::new(),
        resource: resource.to_owned(),
        verb: verb.to_owned(),
        name: (resource == "configmaps").then(|| "map".to_owned()),
    };
    let event = |verb: &str, resource: &str, name: &str, code: u16| AuditEvent {
        user: "user-one".to_owned(),
        user_agent: String::new(),
        verb: verb.to_owned(),
        group: String::new(),
        resource: resource.to_owned(),
        subresource: String::new(),
        namespace: "there".to_owned(),
        name: name.to_owned(),
        uri: String::new(),
        code,
        decision: if code == 403 { AuthorizationDecision::Forbidden } else { AuthorizationDecision::Allowed },
        reason: String::new(),
        received_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let grants = [grant("pods", "list"), grant("configmaps", "get")];
    let found = |events: &[AuditEvent]| {
        let found = permission_findings(events, &grants, |account| format!("user-{account}"));
        found.into_iter().collect::<Vec<_>>().join("\n")
    };
    let used = [event("list", "pods", "", 200), event("get", "configmaps", "map", 200)];
    assert_eq!(found(&used), "");
    let other = [event("list", "pods", "", 200), event("get", "configmaps", "other", 200)];
    let name = "manifests/a/role.yaml: apiGroup \"\", resource configmaps, verb get, resourceName map";
    assert_eq!(found(&other), format!("unused grant: {name}"));
    let conflict = [event("list", "pods", "", 409), used[1].clone()];
    assert!(found(&conflict).contains("resource pods, verb list"), "{}", found(&conflict));
    let forbidden = [used.as_slice(), &[event("delete", "pods", "one", 403)]].concat();
    assert_eq!(found(&forbidden), "missing: user-one may not delete pods \"one\" of group \"\" (403)");
}

/// Replaces the guide's steps with many small ones, which cause many writes.
fn with_small_steps(setup: Setup) -> Setup {
    let mut steps: Vec<_> = (1..=24).map(|step| RolloutStep::Weight(step * 2)).collect();
    steps.extend([RolloutStep::IndefinitePause, RolloutStep::Weight(100)]);
    Setup { rollout: RolloutManifest { steps, ..setup.rollout.clone() }, ..setup }
}

/// Writes annotations on the Rollout and its rewrite until one of the operator's writes to each conflicted and the
/// operator read the object again. Restarts the steps if they end first.
async fn provoke_write_conflicts(
    harness: &Harness<ClusterEnvironment>,
    audit: &AuditLog,
    group: RewriteGroup,
    stable: &str,
) -> Result<()> {
    let operator = operator_user(harness);
    let has_read = |resource: &str, group: &str| {
        let read_again = |event: &AuditEvent| event.verb == "get" && event.resource == resource && event.group == group;
        anyhow::Ok(audit.events_of_user(&operator)?.iter().any(read_again))
    };
    let (rollouts, rewrites, manager) = (rollouts_api(harness), rewrites_api(harness, group), PatchParams::default());
    for number in 0..600_u64 {
        let read_again = (has_read("rollouts", "rollora.dev")?, has_read("inferencemodelrewrites", group.name())?);
        if read_again == (true, true) {
            return Ok(());
        }
        let note = Patch::Merge(json!({ "metadata": { "annotations": { "example.com/note": number.to_string() } } }));
        if !read_again.0 {
            rollouts.patch(MODEL, &manager, &note).await?;
        }
        if !read_again.1 {
            // The rewrite may not exist yet.
            drop(rewrites.patch(REWRITE, &manager, &note).await);
        }
        if rollout_status(harness, MODEL).await?.phase == Phase::Paused {
            harness.cli_stdout(&["abort"]).await?;
            harness.wait_for(served_by(MODEL, stable)).await?;
            harness.cli_stdout(&["retry"]).await?;
        }
        tokio::time::sleep(Duration::from_millis(7 + number * 13 % 37)).await;
    }
    anyhow::bail!("no write of the operator conflicted")
}

/// Starts a cluster that serves rewrites of the legacy group only.
async fn start_legacy_control_plane() -> Result<ControlPlane> {
    let plane = ControlPlane::start().await?;
    let upstream = [UPSTREAM_CRDS.pool, UPSTREAM_CRDS.legacy_rewrite].map(|file| UPSTREAM_CRDS.crd_file(file));
    let upstream = upstream.into_iter().collect::<Result<Vec<_>>>()?;
    plane.install_crds(&[rollora_crds()?, upstream].concat()).await?;
    Ok(plane)
}

/// Holds if every router's rule for the model is from this group, and the router reads this number of groups.
fn routed_by(group: RewriteGroup, read: usize) -> WaitCondition {
    let name = group.name();
    WaitCondition::new(format!("the rule is from {name}, and {read} groups are read"), move |snapshot| {
        let right = |report: &RulesReport| {
            report.models.get(MODEL).is_some_and(|rule| rule.group == name) && report.groups.len() == read
        };
        !snapshot.routers.is_empty() && snapshot.routers.iter().all(|report| report.as_ref().is_ok_and(right))
    })
}

#[test]
fn shipped_roles_grant_exactly_what_is_used() {
    if !cluster_tools_available("the shipped roles") {
        return;
    }
    let setup = with_small_steps(Setup::guide(Duration::from_millis(100)));
    let since = OnceLock::new();
    let options = async || {
        let plane = start_legacy_control_plane().await?;
        since.set(plane.audit_log()).ok();
        // The manifests of the operator for the whole cluster.
        let manifests = vec!["operator", "ext-proc", "vllm-watch"];
        Ok(ClusterOptions { control_plane: Some(plane), manifests, ..ClusterOptions::default() })
    };
    run_on_cluster(&setup, options, async |harness| {
        let audit: &AuditLog = since.get().context("no audit log")?;
        exercise_all_requests(harness, audit).await?;
        let grants = shipped_grants()?;
        let mut found = BTreeSet::new();
        // The audit log has a response only a moment after it was sent.
        for _ in 0..20 {
            found = permission_findings(&audit.events()?, &grants, |name| service_account_user(harness, name));
            if found.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(found.is_empty(), "the roles do not match what is used:\n{}", Vec::from_iter(found).join("\n"));
        check_cluster_wide_watches(&audit.events_of_user(&operator_user(harness))?)
    });
}

/// Without cluster-wide watches, a Role would suffice in place of the ClusterRole.
fn check_cluster_wide_watches(events: &[AuditEvent]) -> Result<()> {
    let everywhere = |event: &AuditEvent| event.verb == "watch" && event.namespace.is_empty();
    for resource in ["rollouts", "inferencemodelrewrites", "inferencepools", "pods"] {
        let watched = events.iter().any(|event| everywhere(event) && event.resource == resource);
        ensure!(watched, "{resource} were not watched in all namespaces");
    }
    Ok(())
}

/// Runs everything that makes the programs use each of their permissions.
async fn exercise_all_requests(harness: &mut Harness<ClusterEnvironment>, audit: &AuditLog) -> Result<()> {
    let half = |old, new| traffic_split(MODEL, &[(old, 52), (new, 48)]);
    harness.wait_for_baseline().await?;
    harness.list_adapter(V2).await?;
    provoke_write_conflicts(harness, audit, Legacy, V1).await?;
    harness.wait_for(half(V1, V2).and(has_phase(Phase::Paused))).await?;
    harness.kill_operator();
    harness.start_operator().await?;
    harness.cli_stdout(&["promote"]).await?;
    harness.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;

    // The current group is installed, and the operator has to create a rewrite.
    harness.environment.control_plane().install_crds(&[UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.current_rewrite)?]).await?;
    harness.wait_for(routed_by(Legacy, 2)).await?;
    wait_until_watched(harness, audit, Current).await?;
    rollouts_api(harness).delete(MODEL, &DeleteParams::default()).await?;
    harness.wait_for(rollout_absent()).await?;
    rewrites_api(harness, Legacy).delete(REWRITE, &DeleteParams::default()).await?;
    harness.environment.write_rollout(&with_small_steps(Setup::guide(Duration::ZERO)).rollout.yaml()).await?;
    harness.wait_for(succeeded(V2).and(served_by(MODEL, V2)).and(routed_by(Current, 2))).await?;

    harness.list_adapter(V3).await?;
    provoke_write_conflicts(harness, audit, Current, V2).await?;
    harness.wait_for(half(V2, V3).and(has_phase(Phase::Paused))).await?;
    for _ in 0..2 {
        harness.cli_stdout(&["abort"]).await?;
        harness.wait_for(served_by(MODEL, V2)).await?;
        harness.cli_stdout(&["retry"]).await?;
        harness.wait_for(half(V2, V3).and(has_phase(Phase::Paused))).await?;
    }
    rollouts_api(harness).delete(MODEL, &DeleteParams::default()).await?;
    harness.wait_for(rollout_absent().and(served_by(MODEL, V2))).await.map(drop)
}

fn rollout_absent() -> WaitCondition {
    WaitCondition::new("the Rollout is gone", |snapshot| snapshot.status.is_err())
}

/// The operator's Role in the namespace of the environment.
struct OperatorRole {
    roles: Api<Role>,
    shipped: Role,
}

impl OperatorRole {
    async fn read(harness: &Harness<ClusterEnvironment>) -> Result<Self> {
        let roles = Api::namespaced(harness.environment.client(), harness.environment.namespace());
        let shipped = roles.get("rollora-operator").await?;
        Ok(Self { roles, shipped })
    }

    /// Replaces the role with the shipped one without these verbs.
    async fn revoke(&self, resource: &str, verbs: &[&str]) -> Result<()> {
        let mut role = self.shipped.clone();
        let rules = role.rules.iter_mut().flatten();
        let mut taken = 0;
        for rule in rules.filter(|rule| rule.resources.iter().flatten().any(|it| it == resource)) {
            taken += rule.verbs.len();
            rule.verbs.retain(|it| !verbs.contains(&it.as_str()));
            taken -= rule.verbs.len();
        }
        role.rules.iter_mut().for_each(|rules| rules.retain(|rule| !rule.verbs.is_empty()));
        ensure!(taken == verbs.len(), "the role grants {taken} of {verbs:?} on {resource}");
        self.replace(role).await
    }

    async fn restore(&self) -> Result<()> {
        self.replace(self.shipped.clone()).await
    }

    async fn replace(&self, mut role: Role) -> Result<()> {
        role.metadata.resource_version = None;
        self.roles.replace("rollora-operator", &PostParams::default(), &role).await?;
        Ok(())
    }
}

/// Waits until a condition and an event name the missing permission and what to do.
async fn wait_until_reported(harness: &Harness<ClusterEnvironment>, reason: &str, request: &str) -> Result<()> {
    let forbidden = format!("forbidden to {request} in namespace {}", harness.environment.namespace());
    let words = [forbidden.as_str(), "manifests/", "grant this verb"];
    ExpectedCondition { condition: STALLED, reason, expected_words: &words }.wait_until_reported(harness, MODEL).await
}

/// Returns what the operator wrote, without its own status and events.
fn operator_writes(harness: &Harness<ClusterEnvironment>, audit: &AuditLog) -> Result<Vec<String>> {
    Ok(other_writes(&audit.events_of_user(&operator_user(harness))?, &[MODEL]))
}

#[test]
fn missing_write_permission_is_reported() {
    if !cluster_tools_available("a missing permission to write") {
        return;
    }
    let options = async || Ok(ClusterOptions::default());
    run_on_cluster(&Setup::guide(Duration::from_millis(200)), options, async |harness| {
        harness.wait_for_baseline().await?;
        let permissions = OperatorRole::read(harness).await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        // The last field has the writes that may precede the refused one.
        let steps = [
            ("configmaps", "configmaps", V1, V2, vec![]),
            ("inferencemodelrewrites", "inferencemodelrewrites.llm-d.ai", V2, V3, vec!["configmaps", "rollouts"]),
        ];
        for (resource, named, old, new, before) in steps {
            permissions.revoke(resource, &["update"]).await?;
            let audit = harness.environment.control_plane().audit_log();
            harness.list_adapter(new).await?;
            wait_until_reported(harness, reason::WRITE_REFUSED, &format!("update {named}")).await?;
            harness
                .assert_holds_for(Duration::from_millis(700), served_by(MODEL, old).and(all_servers_ready()))
                .await?;
            let mut written = operator_writes(harness, &audit)?;
            written.retain(|write| !before.iter().any(|resource| write.starts_with(&format!("update {resource}/"))));
            ensure!(written.is_empty(), "unexpected writes without the permission to update {resource}: {written:?}");

            permissions.restore().await?;
            harness.wait_for(cleaned_up(old).and(succeeded(new)).and(served_by(MODEL, new)).and(not_stalled())).await?;
        }
        harness.stop_clients_and_verify().await.map(drop)
    });
}

fn not_stalled() -> WaitCondition {
    WaitCondition::new("the Rollout is not Stalled", |snapshot| {
        let stalled = |status: &rollora_api::rollout::RolloutStatus| {
            status.conditions.iter().any(|it| it.type_ == STALLED && it.status == ConditionStatus::True)
        };
        snapshot.status.as_ref().is_ok_and(|status| !stalled(status))
    })
}

fn split_at_half() -> WaitCondition {
    traffic_split(MODEL, &[(V1, 50), (V2, 50)])
}

/// Starts clients and a rollout that waits for a person to promote it.
async fn start_paused_at_half(harness: &mut Harness<ClusterEnvironment>) -> Result<OperatorRole> {
    harness.wait_for_baseline().await?;
    let permissions = OperatorRole::read(harness).await?;
    harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
    harness.list_adapter(V2).await?;
    harness.wait_for(split_at_half().and(has_phase(Phase::Paused))).await?;
    Ok(permissions)
}

#[test]
fn missing_read_permission_is_reported_and_allows_abort() {
    if !cluster_tools_available("a missing permission to look") {
        return;
    }
    let options = async || Ok(ClusterOptions::default());
    run_on_cluster(&Setup::pause_at_half(Duration::from_millis(200)), options, async |harness| {
        let permissions = start_paused_at_half(harness).await?;

        // Running watches continue without the permission; a restarted operator cannot list.
        permissions.revoke("pods", &["list"]).await?;
        harness.kill_operator();
        let audit = harness.environment.control_plane().audit_log();
        harness.start_operator().await?;
        wait_until_reported(harness, reason::INVALID, "list pods").await?;
        harness.assert_holds_for(Duration::from_millis(1500), split_at_half().and(all_servers_ready())).await?;
        let written = operator_writes(harness, &audit)?;
        ensure!(written.is_empty(), "unexpected writes without reading pods: {written:?}");
        let tries = audit.events_of_user(&operator_user(harness))?;
        let tries = tries.iter().filter(|event| event.decision == AuthorizationDecision::Forbidden).count();
        // Three watches with exponential backoff.
        ensure!((3..=24).contains(&tries), "{tries} forbidden requests within two seconds");

        harness.cli_stdout(&["abort"]).await?;
        harness.wait_for(served_by(MODEL, V1)).await?;
        permissions.restore().await?;
        harness.cli_stdout(&["retry"]).await?;
        harness.wait_for(split_at_half().and(has_phase(Phase::Paused)).and(not_stalled())).await?;
        harness.cli_stdout(&["promote"]).await?;
        harness.wait_for(cleaned_up(V1).and(succeeded(V2)).and(served_by(MODEL, V2))).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn revoked_read_permission_stops_the_rollout() {
    if !cluster_tools_available("a permission that is taken away") {
        return;
    }
    run_on_cluster(&Setup::pause_at_half(Duration::from_millis(200)), options_with_own_api_server, async |harness| {
        let permissions = start_paused_at_half(harness).await?;

        // With `list` alone the operator could continue: every list is current.
        permissions.revoke("pods", &["list", "watch"]).await?;
        // A watch lasts up to a minute; one that is cut off is started again immediately.
        let audit = harness.environment.control_plane().audit_log();
        harness.environment.kill_api_server()?;
        harness.environment.start_api_server().await?;
        wait_for("three watches of pods that may not even list them", async || {
            let events = audit.events_of_user(&operator_user(harness))?;
            let refused =
                |event: &&AuditEvent| event.verb == "list" && event.decision == AuthorizationDecision::Forbidden;
            Ok((events.iter().filter(refused).count() >= 3).then_some(()))
        })
        .await?;
        harness.cli_stdout(&["promote"]).await?;
        wait_until_reported(harness, reason::INVALID, "list pods").await?;
        harness.assert_holds_for(Duration::from_millis(1500), split_at_half().and(all_servers_ready())).await?;

        permissions.restore().await?;
        harness.wait_for(cleaned_up(V1).and(succeeded(V2)).and(served_by(MODEL, V2)).and(not_stalled())).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}
