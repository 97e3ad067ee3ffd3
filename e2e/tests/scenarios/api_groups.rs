//! InferenceModelRewrite has moved from one API group to another. A cluster has the old group, the new one, or both,
//! and the new one may be installed while requests run.

use crate::cluster_objects::{check_rewrites, get_rewrite, wait_until_watched};
use anyhow::{Result, ensure};
use kube::ResourceExt as _;
use rollora_api::{
    rewrite::RewriteGroup::{self, Current, Legacy},
    rollout::status::Phase,
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{WaitCondition, cleaned_up, has_phase, served_by, succeeded, traffic_split},
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::{
    control_plane::{ControlPlane, UPSTREAM_CRDS, rollora_crds},
    guide::{MODEL, REWRITE, V1, V2, V3},
};
use std::time::Duration;

/// Returns a cluster with Rollora's CRD, pools, and these CRDs of upstream.
async fn options_with_crds(kinds: &[&str]) -> Result<ClusterOptions> {
    let plane = ControlPlane::start().await?;
    let mut definitions = rollora_crds()?;
    for kind in [UPSTREAM_CRDS.pool].iter().chain(kinds) {
        definitions.push(UPSTREAM_CRDS.crd_file(kind)?);
    }
    plane.install_crds(&definitions).await?;
    Ok(ClusterOptions { control_plane: Some(plane), ..ClusterOptions::default() })
}

/// Holds if every router reads the rewrites of exactly these groups.
fn routers_read_groups(groups: &[RewriteGroup]) -> WaitCondition {
    let expected: Vec<_> = groups.iter().map(|group| group.name().to_owned()).collect();
    WaitCondition::new(format!("the routers read {expected:?}"), move |snapshot| {
        let reads = |report: &Result<rollora_api::router_report::RulesReport, String>| {
            report.as_ref().is_ok_and(|report| {
                report.groups.len() == expected.len() && expected.iter().all(|group| report.groups.contains(group))
            })
        };
        !snapshot.routers.is_empty() && snapshot.routers.iter().all(reads)
    })
}

/// Waits until the Rollout's status names its rewrite in this group.
async fn wait_for_rewrite_group(harness: &Harness<ClusterEnvironment>, group: RewriteGroup) -> Result<()> {
    // The status follows the routers' first rule after a moment.
    harness
        .wait_for(WaitCondition::new(format!("the status names a rewrite of {}", group.name()), move |snapshot| {
            let reference = snapshot.status.as_ref().ok().and_then(|status| status.rewrite.as_ref());
            reference.is_some_and(|reference| reference.group == group.name() && reference.name == REWRITE)
        }))
        .await
        .map(drop)
}

#[test]
fn new_crd_does_not_change_a_running_rollout() {
    if !cluster_tools_available("the current kind of rewrite is installed later") {
        return;
    }
    let options = async || options_with_crds(&[UPSTREAM_CRDS.legacy_rewrite]).await;
    run_on_cluster(&Setup::pause_at_half(Duration::from_millis(200)), options, async |harness| {
        harness.wait_for_baseline().await?;
        harness.wait_for(routers_read_groups(&[Legacy])).await?;
        wait_for_rewrite_group(harness, Legacy).await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        harness.list_adapter(V2).await?;
        let at_half = || traffic_split(MODEL, &[(V1, 50), (V2, 50)]);
        harness.wait_for(at_half().and(has_phase(Phase::Paused))).await?;

        let (before, audit) =
            (get_rewrite(harness, Legacy, REWRITE).await?, harness.environment.control_plane().audit_log());
        harness
            .environment
            .control_plane()
            .install_crds(&[UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.current_rewrite)?])
            .await?;
        harness.wait_for(routers_read_groups(&[Current, Legacy])).await?;
        wait_until_watched(harness, &audit, Current).await?;
        harness.assert_holds_for(Duration::from_millis(700), at_half()).await?;
        let after = get_rewrite(harness, Legacy, REWRITE).await?;
        ensure!(before.resource_version() == after.resource_version(), "the rewrite was written: {before:?} {after:?}");

        // The running rollout and the next release continue with the legacy rewrite.
        harness.cli_stdout(&["promote"]).await?;
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        harness.list_adapter(V3).await?;
        harness.wait_for(traffic_split(MODEL, &[(V2, 50), (V3, 50)]).and(has_phase(Phase::Paused))).await?;
        harness.cli_stdout(&["promote"]).await?;
        harness.wait_for(served_by(MODEL, V3).and(succeeded(V3))).await?;
        check_rewrites(harness, &[], &[REWRITE]).await?;
        wait_for_rewrite_group(harness, Legacy).await?;
        let after = get_rewrite(harness, Legacy, REWRITE).await?;
        ensure!(before.uid() == after.uid(), "the rewrite was replaced: {before:?} {after:?}");
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn current_group_alone_carries_the_weights() {
    if !cluster_tools_available("only the current kind of rewrite") {
        return;
    }
    let options = async || options_with_crds(&[UPSTREAM_CRDS.current_rewrite]).await;
    run_on_cluster(&Setup::guide(Duration::from_millis(300)), options, async |harness| {
        harness.wait_for_baseline().await?;
        harness.wait_for(routers_read_groups(&[Current])).await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        harness.list_adapter(V2).await?;
        harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        check_rewrites(harness, &[REWRITE], &[]).await?;
        wait_for_rewrite_group(harness, Current).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn new_rewrite_uses_the_current_group_if_both_exist() {
    if !cluster_tools_available("both kinds of rewrite") {
        return;
    }
    run_on_cluster(
        &Setup::guide(Duration::from_millis(300)),
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            harness.wait_for(routers_read_groups(&[Current, Legacy])).await?;
            check_rewrites(harness, &[REWRITE], &[]).await?;
            wait_for_rewrite_group(harness, Current).await
        },
    );
}
