//! InferenceModelRewrite has moved from one API group to another: clusters have the one, the other, or both, and get the
//! new one some day while requests run.

use crate::objects::{is_watched, rewrite, rewrites_are};
use anyhow::{Result, ensure};
use kube::ResourceExt as _;
use rollora_api::{
    rewrite::RewriteGroup::{self, Current, Legacy},
    rollout::status::Phase,
};
use rollora_e2e::{
    bed::{Bed, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, on_a_cluster},
    seen::{Condition, cleaned_up, phase, served_by, split, succeeded},
    traffic::Crowd,
};
use rollora_testbed::{
    control_plane::{ControlPlane, UPSTREAM_CRDS, rollora_crds},
    guide::{MODEL, REWRITE, V1, V2, V3},
};
use std::time::Duration;

/// A cluster that has our kind, pools, and these kinds of upstream's.
async fn with_kinds(kinds: &[&str]) -> Result<Parts> {
    let plane = ControlPlane::start().await?;
    let mut definitions = rollora_crds()?;
    for kind in [UPSTREAM_CRDS.pool].iter().chain(kinds) {
        definitions.push(UPSTREAM_CRDS.crd_file(kind)?);
    }
    plane.install_crds(&definitions).await?;
    Ok(Parts { plane: Some(plane), ..Parts::default() })
}

/// The routers say that they read the rewrites of these groups.
fn routers_read(groups: &[RewriteGroup]) -> Condition {
    let wanted: Vec<_> = groups.iter().map(|group| group.name().to_owned()).collect();
    Condition::new(format!("the routers read {wanted:?}"), move |seen| {
        let reads = |report: &Result<rollora_api::router_report::RulesReport, String>| {
            report.as_ref().is_ok_and(|report| {
                report.groups.len() == wanted.len() && wanted.iter().all(|group| report.groups.contains(group))
            })
        };
        !seen.routers.is_empty() && seen.routers.iter().all(reads)
    })
}

/// The Rollout works with its rewrite in this group.
async fn works_in(bed: &Bed<Cluster>, group: RewriteGroup) -> Result<()> {
    // It is written down a moment after routers have the first rule.
    bed.sees(Condition::new(format!("the status names a rewrite of {}", group.name()), move |seen| {
        let reference = seen.status.as_ref().ok().and_then(|status| status.rewrite.as_ref());
        reference.is_some_and(|reference| reference.group == group.name() && reference.name == REWRITE)
    }))
    .await
    .map(drop)
}

#[test]
fn the_current_kind_is_installed_while_traffic_runs_on_legacy_objects_and_nothing_changes() {
    if !has_a_cluster("the current kind of rewrite is installed later") {
        return;
    }
    let parts = async || with_kinds(&[UPSTREAM_CRDS.legacy_rewrite]).await;
    on_a_cluster(&Setup::open_at_half(Duration::from_millis(200)), parts, async |bed| {
        bed.sees_baseline().await?;
        bed.sees(routers_read(&[Legacy])).await?;
        works_in(bed, Legacy).await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        bed.list(V2).await?;
        let at_half = || split(MODEL, &[(V1, 50), (V2, 50)]);
        bed.sees(at_half().and(phase(Phase::Paused))).await?;

        let (before, audit) = (rewrite(bed, Legacy, REWRITE).await?, bed.place.plane().audit_log());
        bed.place.plane().install_crds(&[UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.current_rewrite)?]).await?;
        bed.sees(routers_read(&[Current, Legacy])).await?;
        is_watched(bed, &audit, Current).await?;
        bed.keeps_seeing(Duration::from_millis(700), at_half()).await?;
        let after = rewrite(bed, Legacy, REWRITE).await?;
        ensure!(before.resource_version() == after.resource_version(), "it was written: {before:?} {after:?}");

        // What was begun goes on where it began, and so does the next release.
        bed.says(&["promote"]).await?;
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        bed.list(V3).await?;
        bed.sees(split(MODEL, &[(V2, 50), (V3, 50)]).and(phase(Phase::Paused))).await?;
        bed.says(&["promote"]).await?;
        bed.sees(served_by(MODEL, V3).and(succeeded(V3))).await?;
        rewrites_are(bed, &[], &[REWRITE]).await?;
        works_in(bed, Legacy).await?;
        let after = rewrite(bed, Legacy, REWRITE).await?;
        ensure!(before.uid() == after.uid(), "it is another object: {before:?} {after:?}");
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn where_only_the_current_kind_is_installed_it_carries_the_weights() {
    if !has_a_cluster("only the current kind of rewrite") {
        return;
    }
    let parts = async || with_kinds(&[UPSTREAM_CRDS.current_rewrite]).await;
    on_a_cluster(&Setup::guide(Duration::from_millis(300)), parts, async |bed| {
        bed.sees_baseline().await?;
        bed.sees(routers_read(&[Current])).await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        bed.list(V2).await?;
        bed.sees(split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        rewrites_are(bed, &[REWRITE], &[]).await?;
        works_in(bed, Current).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn where_both_kinds_are_installed_a_new_rewrite_is_of_the_current_one() {
    if !has_a_cluster("both kinds of rewrite") {
        return;
    }
    on_a_cluster(
        &Setup::guide(Duration::from_millis(300)),
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            bed.sees(routers_read(&[Current, Legacy])).await?;
            rewrites_are(bed, &[REWRITE], &[]).await?;
            works_in(bed, Current).await
        },
    );
}
