//! Command-line arguments and their validation.

use clap::{Parser, ValueEnum};
use rollora_api::{duration::GatewayDuration, rewrite::RewriteGroup};
use std::{net::IpAddr, time::Duration};

/// Moves traffic from one LoRA adapter version to the next, as described by Rollouts
#[derive(Debug, Parser)]
#[command(name = "rollora-operator", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Args {
    /// Watch only this namespace, for which a Role is sufficient. Default: all namespaces
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// API group of the rewrites that the operator creates: llm-d.ai or inference.networking.x-k8s.io. Default:
    /// llm-d.ai if it is installed, else the other one. Existing rewrites keep their group
    #[arg(long, value_name = "GROUP", value_parser = parse_group)]
    pub(crate) api_group: Option<RewriteGroup>,

    /// Namespace of the Lease that one of several replicas holds. Default: the namespace of the kubeconfig or the pod
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    pub(crate) lease_namespace: Option<String>,
    /// Name of the Lease that one of several replicas holds
    #[arg(long, value_name = "NAME", default_value = "rollora-operator")]
    pub(crate) lease_name: String,
    /// Time after which the Lease expires if it is not renewed, in whole seconds, at least 2s
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_lease_duration)]
    pub(crate) lease_duration: Duration,
    /// Name of this replica, unique among the replicas. Default: the hostname with a random suffix
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub(crate) identity: Option<String>,

    /// IP address on which /metrics, /readyz and /livez are served
    #[arg(long, value_name = "IP", env = "POD_IP", default_value = "0.0.0.0")]
    pub(crate) address: IpAddr,
    /// TCP port on which /metrics, /readyz and /livez are served
    #[arg(long, value_name = "PORT", default_value = "8080")]
    pub(crate) metrics_port: u16,
    /// Format of the log on standard error. RUST_LOG sets its level
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

const EXAMPLES: &str = "\
The cluster is taken from KUBECONFIG, else from ~/.kube/config, else from the pod's service account.

Examples:
  In a pod of manifests/operator:
    rollora-operator
  On a workstation, for one namespace:
    rollora-operator --namespace prod --lease-namespace prod --address 127.0.0.1";

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Readable text, one line per event
    Text,
    /// JSON, one object per line
    Json,
}

fn parse_group(text: &str) -> Result<RewriteGroup, String> {
    let groups = [RewriteGroup::Current, RewriteGroup::Legacy];
    let found = groups.into_iter().find(|group| group.name() == text);
    found.ok_or_else(|| format!("unknown API group: write {}", groups.map(RewriteGroup::name).join(" or ")))
}

fn parse_lease_duration(text: &str) -> Result<Duration, String> {
    let problem = || "not a duration of whole seconds, at least 2s: write one like 15s".to_owned();
    let duration = text.parse::<GatewayDuration>().map_err(|_| problem())?.get();
    let whole = Duration::from_secs(duration.as_secs()) == duration;
    if whole && duration >= Duration::from_secs(2) { Ok(duration) } else { Err(problem()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definition_is_valid() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn invalid_group_or_duration_says_what_to_write() {
        assert_eq!(parse_group("llm-d.ai"), Ok(RewriteGroup::Current));
        assert!(parse_group("x").unwrap_err().ends_with("write llm-d.ai or inference.networking.x-k8s.io"));
        assert_eq!(parse_lease_duration("15s"), Ok(Duration::from_secs(15)));
        for text in ["15", "1s", "3500ms", "x"] {
            assert!(parse_lease_duration(text).is_err(), "{text}");
        }
    }
}
