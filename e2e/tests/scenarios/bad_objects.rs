//! What people get wrong on a cluster: it is said in a condition and in an event that name the object and what to do,
//! nothing else is written because of it, and what was served goes on being served.

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

/// One mistake: a Rollout whose spec differs in this from a good one, and what is said of it.
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
    let mistake = |name, spec, said| ObjectMistake { name, spec, expected: said };
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
                &["InferencePool", "forgotten-pool", "make it", "spec.poolRef"],
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
            expected_condition(PROGRESSING, reason::NO_READY_PODS, &["pool-without-pods", "Ready", "see its pods"]),
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
            expected_condition(
                STALLED,
                reason::SHADOWED_BY,
                &["somebody-elses-rewrite", "shadowed", "spec.rewriteRef"],
            ),
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
        // Who is older is known to the second; within one, the name decides, and these come after the guide's.
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

/// Objects of others that the mistakes are made with.
async fn create_foreign_objects(bed: &Harness<ClusterEnvironment>) -> Result<()> {
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
            "selector": { "matchLabels": { "app": "nobody" } }, "targetPorts": [{ "number": 8000 }],
            "endpointPickerRef": { "name": "epp", "port": { "number": 9002 } },
        },
    });
    let objects = [
        pool,
        rewrite("two-targets", POOL, "two-targets", &[("left", 1), ("right", 1)]),
        rewrite("somebody-elses-rewrite", POOL, "shadowed", &[("shadow", 1)]),
        rewrite("rewrite-of-another-pool", "pool-without-pods", "other-pool", &[("other", 1)]),
    ];
    try_join_all(objects.into_iter().map(|object| bed.environment.apply(object))).await.map(drop)
}

impl ObjectMistake {
    async fn apply(&self, bed: &Harness<ClusterEnvironment>) -> Result<()> {
        let mut spec = json!({
            "model": self.name, "poolRef": { "name": POOL }, "adaptersRef": { "name": ADAPTERS_CONFIG_MAP },
            "strategy": { "steps": [{ "setWeight": 100 }] },
        });
        // An id of its own: two Rollouts for one would be another mistake.
        spec["adapter"] = json!({ "id": format!("{}-v1", self.name) });
        for (field, value) in self.spec.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let rollout = json!({
            "apiVersion": "rollora.dev/v1alpha1", "kind": "Rollout", "metadata": { "name": self.name }, "spec": spec,
        });
        bed.environment.apply(rollout).await.with_context(|| self.name)
    }

    async fn wait_until_reported(&self, bed: &Harness<ClusterEnvironment>) -> Result<()> {
        self.expected.wait_until_reported(bed, self.name).await.with_context(|| self.name)?;
        let message = rollout_status(bed, self.name).await?.message;
        ensure!(
            self.expected.expected_words.iter().all(|word| message.contains(word)),
            "{}: the status says {message}",
            self.name
        );
        Ok(())
    }
}

type ObjectRevision = (Option<i64>, BTreeMap<String, String>);

/// What there is of others: the rewrites of both groups, and the text of the adapters file.
async fn snapshot_objects(bed: &Harness<ClusterEnvironment>) -> Result<(Vec<(String, ObjectRevision)>, String)> {
    let mut rewrites = Vec::new();
    for group in [Current, Legacy] {
        let list = crate::cluster_objects::rewrites_api(bed, group).list(&ListParams::default()).await?;
        rewrites.extend(list.iter().map(|it| (format!("{} {}", group.name(), it.name_any()), object_revision(it))));
    }
    Ok((rewrites, bed.environment.adapters_yaml().await?))
}

#[test]
fn what_a_rollout_names_and_is_not_there_or_not_its_own_is_named_and_nothing_is_written() {
    if !cluster_tools_available("Rollouts that name what is not there") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            bed.wait_for(succeeded(V1)).await?;
            create_foreign_objects(bed).await?;
            bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
            let (before, audit) = (snapshot_objects(bed).await?, bed.environment.control_plane().audit_log());

            let mistakes = mistakes();
            try_join_all(mistakes.iter().map(|mistake| mistake.apply(bed))).await?;
            try_join_all(mistakes.iter().map(|mistake| mistake.wait_until_reported(bed))).await?;
            bed.assert_holds_for(Duration::from_millis(700), served_by(MODEL, V1).and(all_servers_ready())).await?;

            let names: Vec<_> = mistakes.iter().map(|mistake| mistake.name).chain([MODEL]).collect();
            check_only_directives_written(bed, &audit, &names)?;
            let after = snapshot_objects(bed).await?;
            ensure!(before == after, "written because of mistakes: {before:?} became {after:?}");

            // And who did nothing wrong releases the next version.
            bed.list_adapter(V2).await?;
            bed.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
            bed.stop_clients_and_verify().await.map(drop)
        },
    );
}

/// Sidecars are told in the operator's own key, beside the text of the people, which ids Rollouts govern.
fn check_only_directives_written(bed: &Harness<ClusterEnvironment>, audit: &AuditLog, rollouts: &[&str]) -> Result<()> {
    let mut written = other_writes(&audit.events_of_user(&operator_user(bed))?, rollouts);
    written.retain(|write| write != &format!("update configmaps/ {ADAPTERS_CONFIG_MAP}"));
    ensure!(written.is_empty(), "it has written {written:?}");
    Ok(())
}

/// A cluster that has our kind and pools, and no kind of rewrite.
async fn parts_without_rewrite_kinds() -> Result<ClusterOptions> {
    let plane = ControlPlane::start().await?;
    plane.install_crds(&[rollora_crds()?, vec![UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.pool)?]].concat()).await?;
    Ok(ClusterOptions { control_plane: Some(plane), ..ClusterOptions::default() })
}

#[test]
fn a_kind_that_is_not_installed_is_named_and_what_is_served_goes_on_being_served() {
    if !cluster_tools_available("a kind that is not installed") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    run_on_cluster(&setup, parts_without_rewrite_kinds, async |bed| {
        // From the start: nobody can be sent anywhere by a name, and adapters answer by their own.
        let words = ["no kind of rewrite is installed", "inferencemodelrewrites.llm-d.ai", "CustomResourceDefinition"];
        let missing =
            ExpectedCondition { condition: condition_type::STALLED, reason: reason::INVALID, expected_words: &words };
        missing.wait_until_reported(bed, MODEL).await?;
        let written = writes_within_a_second(bed).await?;
        ensure!(written.is_empty(), "without rewrites it has written {written:?}");
        bed.environment.control_plane().install_crds(&[UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.current_rewrite)?]).await?;
        bed.wait_for_baseline().await?;

        // In the middle: the pool's kind goes, with the pool.
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let pools = UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.pool)?;
        let before = get_rewrite(bed, Current, REWRITE).await?;
        bed.environment.control_plane().uninstall_crd(&pools).await?;
        bed.list_adapter(V2).await?;
        let words = ["inferencepools.inference.networking.k8s.io", "CustomResourceDefinition"];
        ExpectedCondition { condition: condition_type::STALLED, reason: reason::INVALID, expected_words: &words }
            .wait_until_reported(bed, MODEL)
            .await?;
        let written = writes_within_a_second(bed).await?;
        ensure!(written.is_empty(), "without pools it has written {written:?}");
        bed.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        ensure!(object_revision(&get_rewrite(bed, Current, REWRITE).await?) == object_revision(&before));

        bed.environment.control_plane().install_crds(&[pools]).await?;
        bed.environment.apply(pool_manifest()).await?;
        bed.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        ensure!(!is_stalled(bed).await?, "it is mended, and still said to be wrong");
        bed.stop_clients_and_verify().await.map(drop)
    });
}

/// What the operator writes besides words, within a second.
async fn writes_within_a_second(bed: &Harness<ClusterEnvironment>) -> Result<Vec<String>> {
    let audit = bed.environment.control_plane().audit_log();
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(other_writes(&audit.events_of_user(&operator_user(bed))?, &[MODEL]))
}

async fn is_stalled(bed: &Harness<ClusterEnvironment>) -> Result<bool> {
    let conditions = rollout_status(bed, MODEL).await?.conditions;
    Ok(conditions.iter().any(|it| it.type_ == condition_type::STALLED && it.status == ConditionStatus::True))
}

/// The pool of the manifests, as somebody makes it again.
fn pool_manifest() -> Value {
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": { "name": POOL },
        "spec": {
            "selector": { "matchLabels": { "app": POOL } }, "targetPorts": [{ "number": 8000 }],
            "endpointPickerRef": { "name": "epp", "port": { "number": 9002 } },
        },
    })
}

/// A permission without which the operator can say nothing in a status.
struct RemovedPermission {
    role: &'static str,
    verb: &'static str,
    resource: &'static str,
    /// What is asked for with it, below the group.
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
fn an_operator_that_may_not_look_at_rollouts_or_its_lease_says_so_in_its_log_and_when_it_is_asked() {
    if !cluster_tools_available("an operator that may not look") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
            for blind in &REMOVED_PERMISSIONS {
                bed.kill_operator();
                let shipped = blind.revoke(bed).await?;
                let audit = bed.environment.control_plane().audit_log();
                bed.start_operator().await?;
                let namespace = bed.environment.namespace().to_owned();
                let words = format!("forbidden to {} {} in namespace {namespace}", blind.verb, blind.resource);
                wait_for_readyz(bed, 503, &[&words, "manifests/", "grant this verb"]).await?;
                let log: String = bed.environment.operators().iter().map(ContainerHandle::log).collect();
                ensure!(log.contains(&words), "the log does not say: {words}");
                bed.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
                let written = other_writes(&audit.events_of_user(&operator_user(bed))?, &[]);
                ensure!(written.is_empty(), "it has written {written:?}");
                blind.restore(bed, shipped).await?;
                wait_for_readyz(bed, 200, &["ok"]).await?;
            }
            bed.list_adapter(V2).await?;
            bed.wait_for(served_by(MODEL, V2).and(succeeded(V2))).await?;
            bed.stop_clients_and_verify().await.map(drop)
        },
    );
}

impl RemovedPermission {
    fn roles_api(bed: &Harness<ClusterEnvironment>) -> Api<Role> {
        Api::namespaced(bed.environment.client(), bed.environment.namespace())
    }

    /// Takes the verb away, and waits until the API server knows; the role as it was.
    async fn revoke(&self, bed: &Harness<ClusterEnvironment>) -> Result<Role> {
        let shipped = Self::roles_api(bed).get(self.role).await?;
        let (plural, group) = self.resource.split_once('.').context("a resource with its group")?;
        let mut role = shipped.clone();
        for rule in role.rules.iter_mut().flatten() {
            if rule.resources.iter().flatten().any(|resource| resource == plural) {
                rule.verbs.retain(|verb| verb != self.verb);
            }
        }
        Self::roles_api(bed).replace(self.role, &PostParams::default(), &role).await?;

        let (plane, namespace) = (bed.environment.control_plane(), bed.environment.namespace());
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

    async fn restore(&self, bed: &Harness<ClusterEnvironment>, mut shipped: Role) -> Result<()> {
        shipped.metadata.resource_version = None;
        Self::roles_api(bed).replace(self.role, &PostParams::default(), &shipped).await?;
        Ok(())
    }
}

/// Waits until the operator's `/readyz` answers so.
async fn wait_for_readyz(bed: &Harness<ClusterEnvironment>, code: u16, words: &[&str]) -> Result<()> {
    let answers = async || {
        let operators = bed.environment.operators();
        let operator = operators.first().context("there is no operator")?;
        let address = ListenAddress::Tcp((operator.address(), 8080).into());
        let Ok((status, body)) = send_request(&address, request("GET", "/readyz", None)).await else { return Ok(None) };
        let text = String::from_utf8_lossy(&body);
        Ok((status == code && words.iter().all(|word| text.contains(word))).then_some(()))
    };
    wait_for(&format!("/readyz answers {code} with {words:?}"), answers).await
}
