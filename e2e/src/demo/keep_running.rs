//! Keeps everything running after the walkthrough, and prints commands to try.

use super::screen::Screen;
use crate::{cluster::ClusterEnvironment, files::ListedAdapter, harness::Environment as _, local::LocalEnvironment};
use anyhow::{Context as _, Result};
use rollora_testbed::{
    guide::{ADAPTERS_CONFIG_MAP, MODEL, V2},
    http::ListenAddress,
    process::built_program,
    tools::CONTROL_PLANE,
};
use std::path::Path;

/// Prints the hints; never returns, the caller drops the future.
pub(super) async fn wait_until_interrupted(lines: &[String], screen: &mut Screen) -> Result<()> {
    screen.print_line("\nEverything keeps running until Ctrl-C. Commands to try:");
    for line in lines {
        screen.print_line(format!("  {line}").trim_end());
    }
    std::future::pending().await
}

/// Returns the hints for the environment on one machine.
pub(super) fn local_hints(environment: &LocalEnvironment, v3: &ListedAdapter) -> Result<Vec<String>> {
    let rollora = display_path(&built_program("rollora")?);
    let rollora_local = environment.rollora_local();
    let (state, adapters) = (rollora_local.state_dir(), rollora_local.adapters_file());
    let (state, adapters) = (state.display(), adapters.display());
    let mut lines = vec![
        format!("adapters   {adapters}"),
        format!("rollout    {}", rollora_local.rollout_file().display()),
        format!(
            "rules      {}/rules   metrics {}/metrics",
            rollora_local.status_address(),
            rollora_local.status_address()
        ),
        String::new(),
        "# watch, in another terminal".to_owned(),
        format!("{rollora} status --watch --state {state}"),
        "# release a third version: add two lines".to_owned(),
        format!("sed -i '/id: {V2}/i\\        - id: {}\\n          source: {}' {adapters}", v3.id, v3.source),
        "# abort it halfway".to_owned(),
        format!("{rollora} abort --state {state}"),
    ];
    lines.extend(example_request(&environment.gateway()));
    Ok(lines)
}

/// Returns the hints for the environment on a cluster's parts.
pub(super) fn cluster_hints(cluster: &ClusterEnvironment, v3: &ListedAdapter) -> Result<Vec<String>> {
    let (kubectl, rollora) = (CONTROL_PLANE.program("kubectl")?, built_program("rollora")?);
    let folder = |program: &Path| program.parent().map(|folder| folder.display().to_string()).context("no folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guide/test-traffic-splitting.sh");
    let gateway = cluster.gateway();
    let address = gateway.to_string();
    let host = address.trim_start_matches("http://");
    let mut lines = vec![
        "# in another terminal, first; this kubeconfig selects the demo's namespace".to_owned(),
        format!("export KUBECONFIG={}", cluster.kubeconfig()?.display()),
        format!("export PATH={}:{}:$PATH", folder(&kubectl)?, folder(&rollora)?),
        String::new(),
        "# watch".to_owned(),
        "kubectl get rollouts -w        # -o wide: also shows what it waits for".to_owned(),
        "rollora status -w".to_owned(),
        "# release a third version: add two lines, in an editor or with sed".to_owned(),
        format!("kubectl edit configmap {ADAPTERS_CONFIG_MAP}"),
        format!("kubectl get configmap {ADAPTERS_CONFIG_MAP} -o yaml | sed \\"),
        format!("  's|^\\( *\\)- id: {V2}$|\\1- id: {}\\n\\1  source: {}\\n&|' \\", v3.id, v3.source),
        "  | kubectl replace -f -".to_owned(),
        "# abort it halfway".to_owned(),
        "rollora abort".to_owned(),
        "# the events, the weights, and which version answers".to_owned(),
        "kubectl get events --sort-by=.metadata.creationTimestamp".to_owned(),
        format!("kubectl get inferencemodelrewrites.llm-d.ai {MODEL} -o yaml"),
        format!("{} {host} {MODEL}", display_path(&script)),
    ];
    lines.extend(example_request(&gateway));
    Ok(lines)
}

fn example_request(gateway: &ListenAddress) -> [String; 3] {
    [
        "# one request".to_owned(),
        format!("curl {gateway}/v1/chat/completions -H 'Content-Type: application/json' \\"),
        format!("  -d '{{\"model\": \"{MODEL}\", \"messages\": [{{\"role\": \"user\", \"content\": \"hello\"}}]}}'"),
    ]
}

/// Returns the path relative to the current folder if it is below that, else unchanged.
fn display_path(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
