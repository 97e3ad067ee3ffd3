//! What people get wrong on a cluster: it is said in a condition and in an event that name the object and what to do,
//! nothing else is written because of it, and what was served goes on being served.

use crate::objects::{Said, operator, other_writes, rewrite, shape, status, until};
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
    bed::{Bed, Place as _, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, on_a_cluster},
    seen::{cleaned_up, every_server_is_ready, served_by, succeeded},
    traffic::Crowd,
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
struct Mistake {
    name: &'static str,
    spec: Value,
    said: Said<'static>,
}

const fn said(condition: &'static str, reason: &'static str, words: &'static [&'static str]) -> Said<'static> {
    Said { condition, reason, words }
}

fn mistakes() -> Vec<Mistake> {
    use condition_type::{PROGRESSING, STALLED};
    let mistake = |name, spec, said| Mistake { name, spec, said };
    vec![
        mistake(
            "no-config-map",
            json!({ "adaptersRef": { "name": "forgotten-adapters" } }),
            said(STALLED, reason::INVALID, &["forgotten-adapters", "does not exist", "make it", "spec.adaptersRef"]),
        ),
        mistake(
            "no-key",
            json!({ "adaptersRef": { "name": ADAPTERS_CONFIG_MAP, "key": "forgotten.yaml" } }),
            said(STALLED, reason::INVALID, &[ADAPTERS_CONFIG_MAP, "no key forgotten.yaml", "configmap.yaml"]),
        ),
        mistake(
            "no-pool",
            json!({ "poolRef": { "name": "forgotten-pool" } }),
            said(STALLED, reason::INVALID, &["InferencePool", "forgotten-pool", "make it", "spec.poolRef"]),
        ),
        mistake(
            "no-adapter",
            json!({ "adapter": { "id": "no-adapter-v9" } }),
            said(PROGRESSING, reason::NOT_LISTED, &["no-adapter-v9", "add it under ensureExist"]),
        ),
        mistake(
            "no-match",
            json!({ "adapter": { "follow": { "pattern": "no-match-v*" } } }),
            said(PROGRESSING, reason::NO_MATCH, &["no-match-v*", "ensureExist", "list one"]),
        ),
        mistake(
            "no-ready-pods",
            json!({ "poolRef": { "name": "pool-without-pods" } }),
            said(PROGRESSING, reason::NO_READY_PODS, &["pool-without-pods", "Ready", "see its pods"]),
        ),
        mistake(
            "two-targets",
            json!({}),
            said(STALLED, reason::STABLE_UNKNOWN, &["left", "right", STABLE_ANNOTATION, "rewrite two-targets"]),
        ),
        mistake(
            "shadowed",
            json!({}),
            said(STALLED, reason::SHADOWED_BY, &["somebody-elses-rewrite", "shadowed", "spec.rewriteRef"]),
        ),
        mistake(
            "other-pool",
            json!({ "rewriteRef": { "name": "rewrite-of-another-pool" } }),
            said(STALLED, reason::CONFLICT, &["rewrite-of-another-pool", "pool-without-pods", POOL, "spec.rewriteRef"]),
        ),
        // Who is older is known to the second; within one, the name decides, and these come after the guide's.
        mistake(
            "the-same-model",
            json!({ "model": MODEL, "rewriteRef": { "name": REWRITE } }),
            said(STALLED, reason::CONFLICT, &[MODEL, "older", "delete one"]),
        ),
        mistake(
            "the-same-adapters",
            json!({ "adapter": { "follow": { "pattern": "small-segment-*" } } }),
            said(STALLED, reason::CONFLICT, &[MODEL, "older", "small-segment-*", "patterns"]),
        ),
    ]
}

/// Objects of others that the mistakes are made with.
async fn surroundings(bed: &Bed<Cluster>) -> Result<()> {
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
    try_join_all(objects.into_iter().map(|object| bed.place.apply(object))).await.map(drop)
}

impl Mistake {
    async fn make(&self, bed: &Bed<Cluster>) -> Result<()> {
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
        bed.place.apply(rollout).await.with_context(|| self.name)
    }

    async fn is_told(&self, bed: &Bed<Cluster>) -> Result<()> {
        self.said.is_told(bed, self.name).await.with_context(|| self.name)?;
        let message = status(bed, self.name).await?.message;
        ensure!(self.said.words.iter().all(|word| message.contains(word)), "{}: the status says {message}", self.name);
        Ok(())
    }
}

type Shape = (Option<i64>, BTreeMap<String, String>);

/// What there is of others: the rewrites of both groups, and the text of the adapters file.
async fn what_is_there(bed: &Bed<Cluster>) -> Result<(Vec<(String, Shape)>, String)> {
    let mut rewrites = Vec::new();
    for group in [Current, Legacy] {
        let list = crate::objects::rewrites(bed, group).list(&ListParams::default()).await?;
        rewrites.extend(list.iter().map(|it| (format!("{} {}", group.name(), it.name_any()), shape(it))));
    }
    Ok((rewrites, bed.place.adapters_file().await?))
}

#[test]
fn what_a_rollout_names_and_is_not_there_or_not_its_own_is_named_and_nothing_is_written() {
    if !has_a_cluster("Rollouts that name what is not there") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    on_a_cluster(
        &setup,
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            bed.sees(succeeded(V1)).await?;
            surroundings(bed).await?;
            bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
            let (before, audit) = (what_is_there(bed).await?, bed.place.plane().audit_log());

            let mistakes = mistakes();
            try_join_all(mistakes.iter().map(|mistake| mistake.make(bed))).await?;
            try_join_all(mistakes.iter().map(|mistake| mistake.is_told(bed))).await?;
            bed.keeps_seeing(Duration::from_millis(700), served_by(MODEL, V1).and(every_server_is_ready())).await?;

            let names: Vec<_> = mistakes.iter().map(|mistake| mistake.name).chain([MODEL]).collect();
            only_the_key_was_written(bed, &audit, &names)?;
            let after = what_is_there(bed).await?;
            ensure!(before == after, "written because of mistakes: {before:?} became {after:?}");

            // And who did nothing wrong releases the next version.
            bed.list(V2).await?;
            bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
            bed.clients_saw_nothing_wrong().await.map(drop)
        },
    );
}

/// Sidecars are told in the operator's own key, beside the text of the people, which ids Rollouts govern.
fn only_the_key_was_written(bed: &Bed<Cluster>, audit: &AuditLog, rollouts: &[&str]) -> Result<()> {
    let mut written = other_writes(&audit.events_of_user(&operator(bed))?, rollouts);
    written.retain(|write| write != &format!("update configmaps/ {ADAPTERS_CONFIG_MAP}"));
    ensure!(written.is_empty(), "it has written {written:?}");
    Ok(())
}

/// A cluster that has our kind and pools, and no kind of rewrite.
async fn without_rewrites() -> Result<Parts> {
    let plane = ControlPlane::start().await?;
    plane.install_crds(&[rollora_crds()?, vec![UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.pool)?]].concat()).await?;
    Ok(Parts { plane: Some(plane), ..Parts::default() })
}

#[test]
fn a_kind_that_is_not_installed_is_named_and_what_is_served_goes_on_being_served() {
    if !has_a_cluster("a kind that is not installed") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    on_a_cluster(&setup, without_rewrites, async |bed| {
        // From the start: nobody can be sent anywhere by a name, and adapters answer by their own.
        let words = ["no kind of rewrite is installed", "inferencemodelrewrites.llm-d.ai", "CustomResourceDefinition"];
        let missing = Said { condition: condition_type::STALLED, reason: reason::INVALID, words: &words };
        missing.is_told(bed, MODEL).await?;
        let written = writes_of_a_while(bed).await?;
        ensure!(written.is_empty(), "without rewrites it has written {written:?}");
        bed.place.plane().install_crds(&[UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.current_rewrite)?]).await?;
        bed.sees_baseline().await?;

        // In the middle: the pool's kind goes, with the pool.
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        let pools = UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.pool)?;
        let before = rewrite(bed, Current, REWRITE).await?;
        bed.place.plane().uninstall_crd(&pools).await?;
        bed.list(V2).await?;
        let words = ["inferencepools.inference.networking.k8s.io", "CustomResourceDefinition"];
        Said { condition: condition_type::STALLED, reason: reason::INVALID, words: &words }.is_told(bed, MODEL).await?;
        let written = writes_of_a_while(bed).await?;
        ensure!(written.is_empty(), "without pools it has written {written:?}");
        bed.keeps_seeing(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        ensure!(shape(&rewrite(bed, Current, REWRITE).await?) == shape(&before));

        bed.place.plane().install_crds(&[pools]).await?;
        bed.place.apply(the_pool()).await?;
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        ensure!(!is_stalled(bed).await?, "it is mended, and still said to be wrong");
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

/// What the operator writes besides words, within a second.
async fn writes_of_a_while(bed: &Bed<Cluster>) -> Result<Vec<String>> {
    let audit = bed.place.plane().audit_log();
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(other_writes(&audit.events_of_user(&operator(bed))?, &[MODEL]))
}

async fn is_stalled(bed: &Bed<Cluster>) -> Result<bool> {
    let conditions = status(bed, MODEL).await?.conditions;
    Ok(conditions.iter().any(|it| it.type_ == condition_type::STALLED && it.status == ConditionStatus::True))
}

/// The pool of the manifests, as somebody makes it again.
fn the_pool() -> Value {
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": { "name": POOL },
        "spec": {
            "selector": { "matchLabels": { "app": POOL } }, "targetPorts": [{ "number": 8000 }],
            "endpointPickerRef": { "name": "epp", "port": { "number": 9002 } },
        },
    })
}

/// A permission without which the operator can say nothing in a status.
struct Blind {
    role: &'static str,
    verb: &'static str,
    resource: &'static str,
    /// What is asked for with it, below the group.
    path: &'static str,
}

const BLIND: [Blind; 2] = [
    Blind { role: "rollora-operator", verb: "list", resource: "rollouts.rollora.dev", path: "v1alpha1" },
    Blind { role: "rollora-operator-lease", verb: "get", resource: "leases.coordination.k8s.io", path: "v1" },
];

#[test]
fn an_operator_that_may_not_look_at_rollouts_or_its_lease_says_so_in_its_log_and_when_it_is_asked() {
    if !has_a_cluster("an operator that may not look") {
        return;
    }
    let setup = Setup { servers: vec![ServerKind::simulated(&[]); 2], ..Setup::guide(Duration::from_millis(200)) };
    on_a_cluster(
        &setup,
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
            for blind in &BLIND {
                bed.kill_operator();
                let shipped = blind.take_away(bed).await?;
                let audit = bed.place.plane().audit_log();
                bed.start_operator().await?;
                let namespace = bed.place.namespace().to_owned();
                let words = format!("forbidden to {} {} in namespace {namespace}", blind.verb, blind.resource);
                is_asked(bed, 503, &[&words, "manifests/", "grant this verb"]).await?;
                let log: String = bed.place.operators().iter().map(ContainerHandle::log).collect();
                ensure!(log.contains(&words), "the log does not say: {words}");
                bed.keeps_seeing(Duration::from_millis(500), served_by(MODEL, V1)).await?;
                let written = other_writes(&audit.events_of_user(&operator(bed))?, &[]);
                ensure!(written.is_empty(), "it has written {written:?}");
                blind.give_back(bed, shipped).await?;
                is_asked(bed, 200, &["ok"]).await?;
            }
            bed.list(V2).await?;
            bed.sees(served_by(MODEL, V2).and(succeeded(V2))).await?;
            bed.clients_saw_nothing_wrong().await.map(drop)
        },
    );
}

impl Blind {
    fn roles(bed: &Bed<Cluster>) -> Api<Role> {
        Api::namespaced(bed.place.client(), bed.place.namespace())
    }

    /// Takes the verb away, and waits until the API server knows; the role as it was.
    async fn take_away(&self, bed: &Bed<Cluster>) -> Result<Role> {
        let shipped = Self::roles(bed).get(self.role).await?;
        let (plural, group) = self.resource.split_once('.').context("a resource with its group")?;
        let mut role = shipped.clone();
        for rule in role.rules.iter_mut().flatten() {
            if rule.resources.iter().flatten().any(|resource| resource == plural) {
                rule.verbs.retain(|verb| verb != self.verb);
            }
        }
        Self::roles(bed).replace(self.role, &PostParams::default(), &role).await?;

        let (plane, namespace) = (bed.place.plane(), bed.place.namespace());
        let token = plane.service_account_token(namespace, "rollora-operator", Duration::from_mins(10)).await?;
        let client = plane.client(&Credential::Token(token)).await?;
        let object = if self.verb == "get" { "/rollora-operator" } else { "" };
        let path = format!("/apis/{group}/{}/namespaces/{namespace}/{plural}{object}", self.path);
        let refused = async || match client.request_text(http::Request::get(&path).body(Vec::new())?).await {
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Some(())),
            Ok(_) => Ok(None),
            Err(error) => Err(error.into()),
        };
        until("the permission is gone", refused).await?;
        Ok(shipped)
    }

    async fn give_back(&self, bed: &Bed<Cluster>, mut shipped: Role) -> Result<()> {
        shipped.metadata.resource_version = None;
        Self::roles(bed).replace(self.role, &PostParams::default(), &shipped).await?;
        Ok(())
    }
}

/// Waits until the operator's `/readyz` answers so.
async fn is_asked(bed: &Bed<Cluster>, code: u16, words: &[&str]) -> Result<()> {
    let answers = async || {
        let operators = bed.place.operators();
        let operator = operators.first().context("there is no operator")?;
        let address = ListenAddress::Tcp((operator.address(), 8080).into());
        let Ok((status, body)) = send_request(&address, request("GET", "/readyz", None)).await else { return Ok(None) };
        let text = String::from_utf8_lossy(&body);
        Ok((status == code && words.iter().all(|word| text.contains(word))).then_some(()))
    };
    until(&format!("/readyz answers {code} with {words:?}"), answers).await
}
