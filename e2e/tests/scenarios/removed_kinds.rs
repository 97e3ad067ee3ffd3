//! A CRD of InferenceModelRewrite is removed and installed again while routers run.

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use rollora_api::{
    rewrite::RewriteGroup::{self, Current, Legacy},
    router_report::RulesReport,
};
use rollora_e2e::scenario::cluster_tools_available;
use rollora_testbed::{
    control_plane::{ControlPlane, UPSTREAM_CRDS},
    http::{self, ListenAddress},
    ports::ReservedPort,
    process::{ChildProcess, built_program},
};
use serde_json::json;
use std::{collections::BTreeMap, process::Command, time::Duration};

/// The model that rewrites of both groups have a rule for.
const SHARED_MODEL: &str = "shared";

fn target_name(group: RewriteGroup) -> &'static str {
    if group == Current { "current" } else { "legacy" }
}

/// Returns the targets by model that are active with the rewrites of these groups.
fn expected_targets(groups: &[RewriteGroup]) -> BTreeMap<String, String> {
    let own = groups.iter().map(|group| (format!("{}-only", target_name(*group)), target_name(*group).to_owned()));
    // The current group takes precedence.
    let shared = groups.iter().min_by_key(|group| **group != Current);
    own.chain(shared.map(|group| (SHARED_MODEL.to_owned(), target_name(*group).to_owned()))).collect()
}

async fn create_rewrite(client: &Client, namespace: &str, group: RewriteGroup) -> Result<()> {
    let kind = GroupVersionKind::gvk(group.name(), "v1alpha2", "InferenceModelRewrite");
    let rewrites: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk(&kind));
    let name = target_name(group);
    let own = format!("{name}-only");
    let object = json!({
        "apiVersion": group.api_version(), "kind": "InferenceModelRewrite", "metadata": { "name": name },
        "spec": { "poolRef": { "name": "pool" }, "rules": [{
            "matches": [{ "model": { "value": SHARED_MODEL } }, { "model": { "value": own } }],
            "targets": [{ "modelRewrite": name }],
        }] },
    });
    rewrites.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

/// An ext-proc process that watches rewrites.
struct ExtProcProcess {
    process: ChildProcess,
    metrics_address: ListenAddress,
    _ports: [ReservedPort; 3],
}

impl ExtProcProcess {
    fn start(plane: &ControlPlane, namespace: &str, folder: &std::path::Path) -> Result<Self> {
        let ports = [ReservedPort::reserve()?, ReservedPort::reserve()?, ReservedPort::reserve()?];
        let mut command = Command::new(built_program("rollora-ext-proc")?);
        command.env("KUBECONFIG", plane.admin_kubeconfig());
        command.args(["--pool", "pool", "--namespace", namespace, "--address", "127.0.0.1"]);
        for (flag, port) in ["--grpc-port", "--grpc-health-port", "--metrics-port"].iter().zip(&ports) {
            command.arg(flag).arg(port.number().to_string());
        }
        let metrics_address = ports[2].address().into();
        Ok(Self { process: ChildProcess::start("rollora-ext-proc", command, folder)?, metrics_address, _ports: ports })
    }

    /// Waits until the active rules are those of these groups and no others; `/readyz` must not fail after the first
    /// time.
    async fn wait_for_rules(&self, groups: &[RewriteGroup], starting: bool) -> Result<()> {
        let (expected, names) = (expected_targets(groups), groups.iter().map(|group| group.name()).collect::<Vec<_>>());
        let mut last = String::new();
        for _ in 0..3000 {
            let ready = http::send_request(&self.metrics_address, http::request("GET", "/readyz", None)).await;
            let ready = ready.is_ok_and(|(status, _)| status == 200);
            ensure!(ready || starting, "/readyz fails\n{}", self.process.log_tail(20));
            if let Ok(report) = http::get_json::<RulesReport>(&self.metrics_address, "/rules").await {
                let found =
                    report.models.iter().map(|(model, rule)| (model.clone(), rule.targets[0].model_rewrite.clone()));
                if ready && report.groups == names && found.collect::<BTreeMap<_, _>>() == expected {
                    return Ok(());
                }
                last = format!("{report:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("the rules of {names:?} did not become active: {last}\n{}", self.process.log_tail(20))
    }
}

async fn run_scenario() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let definitions = [(Current, UPSTREAM_CRDS.current_rewrite), (Legacy, UPSTREAM_CRDS.legacy_rewrite)];
    for (_, definition) in definitions {
        plane.install_crds(&[UPSTREAM_CRDS.crd_file(definition)?]).await?;
    }
    let (namespace, client) = (plane.create_namespace("removed").await?, plane.admin_client().await?);
    create_rewrite(&client, &namespace, Current).await?;
    create_rewrite(&client, &namespace, Legacy).await?;
    let folder = tempfile::tempdir()?;
    let router = ExtProcProcess::start(&plane, &namespace, folder.path())?;
    router.wait_for_rules(&[Current, Legacy], true).await?;
    for (group, definition) in definitions {
        let other = if group == Current { Legacy } else { Current };
        plane.uninstall_crd(&UPSTREAM_CRDS.crd_file(definition)?).await?;
        router.wait_for_rules(&[other], false).await.with_context(|| format!("{group:?} was removed"))?;
        plane.install_crds(&[UPSTREAM_CRDS.crd_file(definition)?]).await?;
        create_rewrite(&client, &namespace, group).await?;
        router.wait_for_rules(&[Current, Legacy], false).await.with_context(|| format!("{group:?} came back"))?;
    }
    // Without either CRD the process keeps running without rules.
    for (_, definition) in definitions {
        plane.uninstall_crd(&UPSTREAM_CRDS.crd_file(definition)?).await?;
    }
    router.wait_for_rules(&[], false).await.context("both were removed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_crd_removes_only_its_own_rules() {
    if cluster_tools_available("a kind of rewrite is removed") {
        run_scenario().await.unwrap();
    }
}
