//! What was typed.

use clap::{Parser, ValueEnum};
use rollora_api::{duration::GatewayDuration, rewrite::RewriteGroup};
use std::{net::IpAddr, time::Duration};

/// Moves traffic from one LoRA adapter to the next, as Rollouts say.
#[derive(Debug, Parser)]
#[command(name = "rollora-operator", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Args {
    /// Works in this namespace only: a Role there suffices. Else in all of them
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// The API group of rewrites that have to be made. Else the current one (llm-d.ai) where it is installed, else the
    /// legacy one. Rewrites that are there already keep theirs
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub(crate) api_group: Option<RewriteGroup>,

    /// The namespace of the Lease that one of several replicas holds. Else that of the kubeconfig
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    pub(crate) lease_namespace: Option<String>,
    /// The name of that Lease
    #[arg(long, value_name = "NAME", default_value = "rollora-operator")]
    pub(crate) lease_name: String,
    /// How long the Lease is held without being renewed
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = lease_duration)]
    pub(crate) lease_duration: Duration,
    /// The name of this replica; another one for each. Else one that is made up
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub(crate) identity: Option<String>,

    /// Where /metrics, /readyz and /livez are served
    #[arg(long, value_name = "IP", env = "POD_IP", default_value = "0.0.0.0")]
    pub(crate) address: IpAddr,
    /// The port of the same
    #[arg(long, value_name = "PORT", default_value = "8080")]
    pub(crate) metrics_port: u16,
    /// How to log. RUST_LOG says how much
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

const EXAMPLES: &str = "\
The cluster is that of KUBECONFIG, else of ~/.kube/config, else of the pod's service account.

Examples:
  In a pod of manifests/operator:
    rollora-operator
  From a desk, for one namespace:
    rollora-operator --namespace prod --lease-namespace prod --address 127.0.0.1";

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn group(text: &str) -> Result<RewriteGroup, String> {
    let groups = [RewriteGroup::Current, RewriteGroup::Legacy];
    let found = groups.into_iter().find(|group| group.name() == text);
    found.ok_or_else(|| format!("no such group: write {}", groups.map(RewriteGroup::name).join(" or ")))
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    let problem = || "not a duration of whole seconds, at least 2s: write one like 15s".to_owned();
    let duration = text.parse::<GatewayDuration>().map_err(|_| problem())?.get();
    let whole = Duration::from_secs(duration.as_secs()) == duration;
    if whole && duration >= Duration::from_secs(2) { Ok(duration) } else { Err(problem()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn a_group_and_a_duration_that_cannot_be_say_what_to_write() {
        assert_eq!(group("llm-d.ai"), Ok(RewriteGroup::Current));
        assert!(group("x").unwrap_err().ends_with("write llm-d.ai or inference.networking.x-k8s.io"));
        assert_eq!(lease_duration("15s"), Ok(Duration::from_secs(15)));
        for text in ["15", "1s", "3500ms", "x"] {
            assert!(lease_duration(text).is_err(), "{text}");
        }
    }
}
