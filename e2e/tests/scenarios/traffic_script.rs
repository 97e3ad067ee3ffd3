//! The script that counts the responses of each version, as users run it: against Envoy, at each split of the guide.

use anyhow::{Context as _, Result, ensure};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{served_by, traffic_split},
    harness::{Environment as _, Harness, Setup},
    rollora_local::run_command,
    scenario::{cluster_tools_available, run_on_cluster},
};
use rollora_testbed::{
    guide::{MODEL, V1, V2},
    http::ListenAddress,
};
use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

const REQUEST_COUNT: usize = 40;

/// Runs the script, which must succeed, and returns the counts of its report by version.
async fn run_and_count(harness: &Harness<ClusterEnvironment>) -> Result<BTreeMap<String, usize>> {
    let ListenAddress::Tcp(gateway) = harness.environment.gateway() else {
        anyhow::bail!("Envoy listens on a socket file")
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guide/test-traffic-splitting.sh");
    let mut command = Command::new(script);
    command.args([gateway.to_string(), MODEL.to_owned(), REQUEST_COUNT.to_string()]);
    command.env_remove("API_KEY").env_remove("TIMEOUT");
    let output = run_command(command).await?;
    ensure!(output.code == 0, "the script ended with {output:?}");
    let (_, report) = output.stdout.split_once("Answers by model").context("the script printed no report")?;
    let line = |line: &str| {
        let (name, count) = line.strip_suffix(" requests").or(line.strip_suffix(" request"))?.split_once(": ")?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    Ok(report.lines().skip(1).filter_map(line).collect())
}

fn all_requests_to(id: &str) -> BTreeMap<String, usize> {
    BTreeMap::from([(id.to_owned(), REQUEST_COUNT)])
}

#[test]
fn script_counts_match_the_weights_at_each_split() {
    if !cluster_tools_available("the script against Envoy") {
        return;
    }
    // Long enough to count at 90/10.
    let setup = Setup::pause_at_half(Duration::from_secs(4));
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            ensure!(run_and_count(harness).await? == all_requests_to(V1), "the baseline is not v1 alone");
            harness.list_adapter(V2).await?;
            harness.wait_for(traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
            let counts = run_and_count(harness).await?;
            let of = |id: &str| counts.get(id).copied().unwrap_or_default();
            // At 90 %, half of 40 or fewer has a probability of less than one in a billion.
            ensure!(of(V1) + of(V2) == REQUEST_COUNT && of(V1) > REQUEST_COUNT / 2, "at 90/10: {counts:?}");
            harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            let counts = run_and_count(harness).await?;
            let of = |id: &str| counts.get(id).copied().unwrap_or_default();
            // At 50 %, less than an eighth of 40 has a probability of one in five million.
            ensure!(
                of(V1) + of(V2) == REQUEST_COUNT && of(V1).min(of(V2)) >= REQUEST_COUNT / 8,
                "at 50/50: {counts:?}"
            );
            harness.cli_stdout(&["promote"]).await?;
            harness.wait_for(served_by(MODEL, V2)).await?;
            ensure!(run_and_count(harness).await? == all_requests_to(V2), "not v2 alone after the last step");
            Ok(())
        },
    );
}
