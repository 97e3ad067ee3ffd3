//! Mistakes of users on a cluster: a condition and an event name the object and what to do, nothing else is written
//! because of them, and traffic continues.

use crate::cluster_objects::{
    ExpectedCondition, get_rewrite, object_revision, operator_user, other_writes, rollout_status, wait_for,
};
use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use k8s_openapi::api::rbac::v1::Role;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};
use rollora_api::{
    condition::{ConditionStatus, condition_type, reason},
    names::STABLE_ANNOTATION,
    rewrite::RewriteGroup::{Current, Legacy},
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{all_servers_ready, cleaned_up, served_by, succeeded},
    harness::{Environment as _, Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::{
    control_plane::{AuditLog, ControlPlane, Credential, UPSTREAM_CRDS, rollora_crds},
    guide::{ADAPTERS_CONFIG_MAP, MODEL, POOL, REWRITE, V1, V2},
    http::{ListenAddress, request, send_request},
    kubelet::ContainerHandle,
    server::ServerKind,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// One mistake: how the Rollout's spec differs from a good one, and the condition that reports it.
struct ObjectMistake {
    name: &'static str,
    spec: Value,
    expected: ExpectedCondition<'static>,
}

const fn expected_condition(
    condition: &'static str,
    reason: &'static str,
    words: &'static [&'static str],
) -> ExpectedCondition<'static> {
    ExpectedCondition { condition, reason, expected_words: words }
}

fn mistakes() -> Vec<ObjectMistake> {
    use condition_type::{PROGRESSING, STALLED};
    let mistake = |name, spec, condition| ObjectMistake { name, spec, expected: condition };
    vec![
        mistake(
            "no-config-map",
            json!({ "adaptersRef": { "name": "forgotten-adapters" } }),
            expected_condition(
                STALLED,
                reason::INVALID,
                &["forgotten-adapters", "does not exist", "create it", "spec.adaptersRef"],
            ),
        ),
        mistake(
            "no-key",
            json!({ "adaptersRef": { "name": ADAPTERS_CONFIG_MAP, "key": "forgotten.yaml" } }),
            expected_condition(
                STALLED,
                reason::INVALID,
                &[ADAPTERS_CONFIG_MAP, "no key forgotten.yaml", "configmap.yaml"],
            ),
        ),
        mistake(
            "no-pool",
            json!({ "poolRef": { "name": "forgotten-pool" } }),
            expected_condition(
                STALLED,
                reason::INVALID,
                &["InferencePool", "forgotten-pool", "create it", "spec.poolRef"],
            ),
        ),
        mistake(
            "no-adapter",
            json!({ "adapter": { "id": "no-adapter-v9" } }),
            expected_condition(PROGRESSING, reason::NOT_LISTED, &["no-adapter-v9", "add it under ensureExist"]),
        ),
        mistake(
            "no-match",
            json!({ "adapter": { "follow": { "pattern": "no-match-v*" } } }),
            expected_condition(PROGRESSING, reason::NO_MATCH, &["no-match-v*", "ensureExist", "list one"]),
        ),
        mistake(
            "no-ready-pods",
            json!({ "poolRef": { "name": "pool-without-pods" } }),
            expected_condition(
                PROGRESSING,
                reason::NO_READY_PODS,
                &["pool-without-pods", "Ready", "check the pool's pods"],
            ),
        ),
        mistake(
            "two-targets",
            json!({}),
            expected_condition(
                STALLED,
                reason::STABLE_UNKNOWN,
                &["left", "right", STABLE_ANNOTATION, "rewrite two-targets"],
            ),
        ),
        mistake(
            "shadowed",
            json!({}),
            expected_condition(STALLED, reason::SHADOWED_BY, &["team-rewrite", "shadowed", "spec.rewriteRef"]),
        ),
        mistake(
            "other-pool",
            json!({ "rewriteRef": { "name": "rewrite-of-another-pool" } }),
            expected_condition(
                STALLED,
                reason::CONFLICT,
                &["rewrite-of-another-pool", "pool-without-pods", POOL, "spec.rewriteRef"],
            ),
        ),
        // Ages are compared in seconds; within one second the name decides, and these names sort after the guide's.
        mistake(
            "the-same-model",
            json!({ "model": MODEL, "rewriteRef": { "name": REWRITE } }),
            expected_condition(STALLED, reason::CONFLICT, &[MODEL, "older", "delete one"]),
        ),
        mistake(
            "the-same-adapters",
            json!({ "adapter": { "follow": { "pattern": "small-segment-*" } } }),
            expected_condition(STALLED, reason::CONFLICT, &[MODEL, "older", "small-segment-*", "patterns"]),
        ),
    ]
}

/// Creates the objects of other owners that the mistakes refer to.
async fn create_foreign_objects(harness: &Harness<ClusterEnvironment>) -> Result<()> {
    let rewrite = |name: &str, pool: &str, model: &str, targets: &[(&str, i32)]| {
        let target = |(id, weight): &(&str, i32)| json!({ "modelRewrite": id, "weight": weight });
        let targets: Vec<_> = targets.iter().map(target).collect();
        json!({
            "apiVersion": Current.api_version(), "kind": "InferenceModelRewrite", "metadata": { "name": name },
            "spec": {
                "poolRef": { "group": "inference.networking.k8s.io", "name": pool },
                "rules": [{ "matches": [{ "model": { "type": "Exact", "value": model } }], "targets": targets }],
            },
        })
    };
    let pool = json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": { "name": "pool-without-pods" },
        "spec": {
            "selector": { "matchLabels": { "app": "no-such-app" } }, "targetPorts": [{ "number": 8000 }],
            "endpointPickerRef": { "name": "epp", "port": { "number": 9002 } },
        },
    });
    let objects = [
        pool,
        rewrite("two-targets", POOL, "two-targets", &[("left", 1), ("right", 1)]),
        rewrite("team-rewrite", POOL, "shadowed", &[("shadow", 1)]),
        rewrite("rewrite-of-another-pool", "pool-without-pods", "other-pool", &[("other", 1)]),
    ];
    try_join_all(objects.into_iter().map(|object| harness.environment.apply(object))).await.map(drop)
}

impl ObjectMistake {
    async fn apply(&self, harness: &Harness<ClusterEnvironment>) -> Result<()> {
        let mut spec = json!({
            "model": self.name, "poolRef": { "name": POOL }, "adaptersRef": { "name": ADAPTERS_CONFIG_MAP },
            "strategy": { "steps": [{ "setWeight": 100 }] },
        });
        // An id of its own, because two Rollouts for one id would be another mistake.
        spec["adapter"] = json!({ "id": format!("{}-v1", self.name) });
        for (field, value) in self.spec.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let rollout = json!({
            "apiVersion": "rollora.dev/v1alpha1", "kind": "Rollout", "metadata": { "name": self.name }, "spec": spec,
        });
        harness.environment.apply(rollout).await.with_context(|| self.name)
    }

    async fn wait_until_reported(&self, harness: &Harness<ClusterEnvironment>) -> Result<()> {
        self.expected.wait_until_reported(harness, self.name).await.with_context(|| self.name)?;
        let message = rollout_status(harness, self.name).await?.message;
        ensure!(
            self.expected.expected_words.iter().all(|word| message.contains(word)),
            "{}: the status message is {message}",
            self.name
        );
        Ok(())
    }
}

type ObjectRevision = (Option<i64>, BTreeMap<String, String>);

/// Returns what the operator must not change: the rewrites of both groups, and the text of the adapters file.
async fn snapshot_objects(harness: &Harness<ClusterEnvironment>) -> Result<(Vec<(String, ObjectRevision)>, String)> {
    let mut rewrites = Vec::new();
    for group in [Current, Legacy] {
        let list = crate::cluster_objects::rewrites_api(harness, group).list(&ListParams::default()).await?;
        rewrites.extend(list.iter().map(|it| (format!("{} {}", group.name(), it.name_any()), object_revision(it))));
    }
    Ok((rewrites, harness.environment.adapters_yaml().await?))
}

#[test]
fn missing_or_foreign_objects_are_reported() {
    if !cluster_tools_available("Rollouts that name what is not there") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            harness.wait_for(succeeded(V1)).await?;
            create_foreign_objects(harness).await?;
            harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
            let (before, audit) = (snapshot_objects(harness).await?, harness.environment.control_plane().audit_log());

            let mistakes = mistakes();
            try_join_all(mistakes.iter().map(|mistake| mistake.apply(harness))).await?;
            try_join_all(mistakes.iter().map(|mistake| mistake.wait_until_reported(harness))).await?;
            harness.assert_holds_for(Duration::from_millis(700), served_by(MODEL, V1).and(all_servers_ready())).await?;

            let names: Vec<_> = mistakes.iter().map(|mistake| mistake.name).chain([MODEL]).collect();
            check_only_directives_written(harness, &audit, &names)?;
            let after = snapshot_objects(harness).await?;
            ensure!(before == after, "objects changed because of mistakes: {before:?} became {after:?}");

            // The valid Rollout releases the next version meanwhile.
            harness.list_adapter(V2).await?;
            harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
            harness.stop_clients_and_verify().await.map(drop)
        },
    );
}

/// Fails if the operator wrote anything but statuses and its own directives, which tell sidecars the ids that Rollouts
/// manage.
fn check_only_directives_written(
    harness: &Harness<ClusterEnvironment>,
    audit: &AuditLog,
    rollouts: &[&str],
) -> Result<()> {
    let mut written = other_writes(&audit.events_of_user(&operator_user(harness))?, rollouts);
    written.retain(|write| write != &format!("update configmaps/ {ADAPTERS_CONFIG_MAP}"));
    ensure!(written.is_empty(), "unexpected writes: {written:?}");
    Ok(())
}

/// Returns a cluster with Rollora's CRD and pools, and without a CRD for rewrites.
async fn options_without_rewrite_crds() -> Result<ClusterOptions> {
    let plane = ControlPlane::start().await?;
    plane.install_crds(&[rollora_crds()?, vec![UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.pool)?]].concat()).await?;
    Ok(ClusterOptions { control_plane: Some(plane), ..ClusterOptions::default() })
}

#[test]
fn missing_crd_is_reported_and_traffic_continues() {
    if !cluster_tools_available("a kind that is not installed") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    run_on_cluster(&setup, options_without_rewrite_crds, async |harness| {
        // At the start: no model name can be rewritten, and adapters answer to their own ids.
        let words = ["no kind of rewrite is installed", "inferencemodelrewrites.llm-d.ai", "CustomResourceDefinition"];
        let missing =
            ExpectedCondition { condition: condition_type::STALLED, reason: reason::INVALID, expected_words: &words };
        missing.wait_until_reported(harness, MODEL).await?;
        let written = writes_within_a_second(harness).await?;
        ensure!(written.is_empty(), "unexpected writes without the CRD of rewrites: {written:?}");
        harness
            .environment
            .control_plane()
            .install_crds(&[UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.current_rewrite)?])
            .await?;
        harness.wait_for_baseline().await?;

        // During a rollout: the CRD of pools is removed, and the pool with it.
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let pools = UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.pool)?;
        let before = get_rewrite(harness, Current, REWRITE).await?;
        harness.environment.control_plane().uninstall_crd(&pools).await?;
        harness.list_adapter(V2).await?;
        let words = ["inferencepools.inference.networking.k8s.io", "CustomResourceDefinition"];
        ExpectedCondition { condition: condition_type::STALLED, reason: reason::INVALID, expected_words: &words }
            .wait_until_reported(harness, MODEL)
            .await?;
        let written = writes_within_a_second(harness).await?;
        ensure!(written.is_empty(), "unexpected writes without the CRD of pools: {written:?}");
        harness.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        ensure!(object_revision(&get_rewrite(harness, Current, REWRITE).await?) == object_revision(&before));

        harness.environment.control_plane().install_crds(&[pools]).await?;
        harness.environment.apply(pool_manifest()).await?;
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        ensure!(!is_stalled(harness).await?, "the Rollout is still Stalled after the CRD is back");
        harness.stop_clients_and_verify().await.map(drop)
    });
}

/// Returns what the operator writes within a second, without statuses and events.
async fn writes_within_a_second(harness: &Harness<ClusterEnvironment>) -> Result<Vec<String>> {
    let audit = harness.environment.control_plane().audit_log();
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(other_writes(&audit.events_of_user(&operator_user(harness))?, &[MODEL]))
}

async fn is_stalled(harness: &Harness<ClusterEnvironment>) -> Result<bool> {
    let conditions = rollout_status(harness, MODEL).await?.conditions;
    Ok(conditions.iter().any(|it| it.type_ == condition_type::STALLED && it.status == ConditionStatus::True))
}

/// The pool of the manifests, which a person creates again.
fn pool_manifest() -> Value {
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": { "name": POOL },
        "spec": {
            "selector": { "matchLabels": { "app": POOL } }, "targetPorts": [{ "number": 8000 }],
            "endpointPickerRef": { "name": "epp", "port": { "number": 9002 } },
        },
    })
}

/// A permission without which the operator cannot write any status.
struct RemovedPermission {
    role: &'static str,
    verb: &'static str,
    resource: &'static str,
    /// The API version in the path of the request that needs the permission.
    path: &'static str,
}

const REMOVED_PERMISSIONS: [RemovedPermission; 2] = [
    RemovedPermission { role: "rollora-operator", verb: "list", resource: "rollouts.rollora.dev", path: "v1alpha1" },
    RemovedPermission {
        role: "rollora-operator-lease",
        verb: "get",
        resource: "leases.coordination.k8s.io",
        path: "v1",
    },
];

#[test]
fn operator_reports_missing_read_permissions() {
    if !cluster_tools_available("an operator that may not look") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
            for permission in &REMOVED_PERMISSIONS {
                harness.kill_operator();
                let shipped = permission.revoke(harness).await?;
                let audit = harness.environment.control_plane().audit_log();
                harness.start_operator().await?;
                let namespace = harness.environment.namespace().to_owned();
                let words =
                    format!("forbidden to {} {} in namespace {namespace}", permission.verb, permission.resource);
                wait_for_readyz(harness, 503, &[&words, "manifests/", "grant this verb"]).await?;
                let log: String = harness.environment.operators().iter().map(ContainerHandle::log).collect();
                ensure!(log.contains(&words), "the log does not contain: {words}");
                harness.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
                let written = other_writes(&audit.events_of_user(&operator_user(harness))?, &[]);
                ensure!(written.is_empty(), "unexpected writes: {written:?}");
                permission.restore(harness, shipped).await?;
                wait_for_readyz(harness, 200, &["ok"]).await?;
            }
            harness.list_adapter(V2).await?;
            harness.wait_for(served_by(MODEL, V2).and(succeeded(V2))).await?;
            harness.stop_clients_and_verify().await.map(drop)
        },
    );
}

impl RemovedPermission {
    fn roles_api(harness: &Harness<ClusterEnvironment>) -> Api<Role> {
        Api::namespaced(harness.environment.client(), harness.environment.namespace())
    }

    /// Removes the verb, waits until the API server enforces that, and returns the original role.
    async fn revoke(&self, harness: &Harness<ClusterEnvironment>) -> Result<Role> {
        let shipped = Self::roles_api(harness).get(self.role).await?;
        let (plural, group) = self.resource.split_once('.').context("a resource with its group")?;
        let mut role = shipped.clone();
        for rule in role.rules.iter_mut().flatten() {
            if rule.resources.iter().flatten().any(|resource| resource == plural) {
                rule.verbs.retain(|verb| verb != self.verb);
            }
        }
        Self::roles_api(harness).replace(self.role, &PostParams::default(), &role).await?;

        let (plane, namespace) = (harness.environment.control_plane(), harness.environment.namespace());
        let token = plane.service_account_token(namespace, "rollora-operator", Duration::from_mins(10)).await?;
        let client = plane.client(&Credential::Token(token)).await?;
        let object = if self.verb == "get" { "/rollora-operator" } else { "" };
        let path = format!("/apis/{group}/{}/namespaces/{namespace}/{plural}{object}", self.path);
        let refused = async || match client.request_text(http::Request::get(&path).body(Vec::new())?).await {
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Some(())),
            Ok(_) => Ok(None),
            Err(error) => Err(error.into()),
        };
        wait_for("the permission is gone", refused).await?;
        Ok(shipped)
    }

    async fn restore(&self, harness: &Harness<ClusterEnvironment>, mut shipped: Role) -> Result<()> {
        shipped.metadata.resource_version = None;
        Self::roles_api(harness).replace(self.role, &PostParams::default(), &shipped).await?;
        Ok(())
    }
}

/// Waits until the operator's `/readyz` answers with this code and these words.
async fn wait_for_readyz(harness: &Harness<ClusterEnvironment>, code: u16, words: &[&str]) -> Result<()> {
    let answers = async || {
        let operators = harness.environment.operators();
        let operator = operators.first().context("there is no operator")?;
        let address = ListenAddress::Tcp((operator.address(), 8080).into());
        let Ok((status, body)) = send_request(&address, request("GET", "/readyz", None)).await else { return Ok(None) };
        let text = String::from_utf8_lossy(&body);
        Ok((status == code && words.iter().all(|word| text.contains(word))).then_some(()))
    };
    wait_for(&format!("/readyz answers {code} with {words:?}"), answers).await
}
