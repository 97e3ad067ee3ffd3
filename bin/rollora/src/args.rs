//! Command-line arguments as clap parses them. `command` validates their values.

use clap::{Args as Arguments, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Roll out new versions of LoRA adapters on vLLM, step by step
#[derive(Debug, Parser)]
#[command(name = "rollora", version, after_help = AFTER_HELP, disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: CommandArgs,
}

const AFTER_HELP: &str = "\
Examples:
  rollora local --rollout rollout.yaml --adapters adapters.yaml --vllm http://127.0.0.1:8000
  rollora status --watch
  rollora promote
  rollora abort

Without --state, -n, --context and --kubeconfig, a command acts on the `rollora local` whose state folder is
.rollora in the current directory; if there is none, on the cluster and namespace that kubectl would use.
--state selects a `rollora local`; -n, --context and --kubeconfig select a cluster.
Installed as kubectl-rollora, the program is also available as `kubectl rollora`.";

const LOCAL_AFTER_HELP: &str = "\
The two files can be edited at any time: to release a new version, list it in the adapters file. Follow the
rollout with `rollora status --watch` in another terminal.

Examples:
  rollora local --rollout rollout.yaml --adapters adapters.yaml --vllm http://127.0.0.1:8000
  rollora local --rollout rollout.yaml --adapters adapters.yaml \\
      --vllm http://127.0.0.1:8001 --vllm http://127.0.0.1:8002 --listen 0.0.0.0:8080 --status-listen 127.0.0.1:9090";

#[derive(Debug, Subcommand)]
pub(crate) enum CommandArgs {
    /// Run Rollora on this machine: the operator, a sidecar for each vLLM server, and a gateway in front of them
    #[command(after_help = LOCAL_AFTER_HELP)]
    Local(LocalArgs),
    /// Show the Rollout as a table of one row, or as JSON
    Get(GetArgs),
    /// Show phase, steps, weights, servers, and what the rollout waits for
    Status(StatusArgs),
    /// Explain why the rollout does not progress, and what to do
    Explain(RolloutArgs),
    /// End the current pause of the rollout
    #[command(after_help = "Examples:\n  rollora promote\n  rollora promote --full")]
    Promote(PromoteArgs),
    /// Move all traffic back to the stable adapter
    Abort(RolloutArgs),
    /// Try a rejected adapter again
    Retry(RolloutArgs),
}

#[derive(Debug, Arguments)]
pub(crate) struct LocalArgs {
    /// Rollout file: the model name that clients send, and the steps of a rollout
    #[arg(long, value_name = "FILE")]
    pub(crate) rollout: PathBuf,
    /// Adapters file: the adapters that each vLLM server must have
    #[arg(long, value_name = "FILE")]
    pub(crate) adapters: PathBuf,
    /// URL of a vLLM server, as in http://127.0.0.1:8000; repeat the option for each server
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) vllm: Vec<String>,
    /// Address on which the gateway accepts requests of clients
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// State folder, which is created if absent and kept between starts
    #[arg(long, value_name = "DIR", default_value = ".rollora")]
    pub(crate) state: PathBuf,
    /// Address that serves /metrics, /rules and /readyz; not served if absent
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) status_listen: Option<String>,
    /// Maximum size of a request body, in bytes or with the unit KiB, MiB or GiB
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) max_body: String,
    /// File with the API key of the vLLM servers, read once at startup; defaults to the value of VLLM_API_KEY, if set
    #[arg(long, value_name = "FILE")]
    pub(crate) vllm_api_key_file: Option<PathBuf>,
}

#[derive(Debug, Arguments)]
pub(crate) struct RolloutArgs {
    /// Name of the Rollout; may be omitted if there is only one
    #[arg(value_name = "NAME")]
    pub(crate) rollout: Option<String>,
    /// State folder of a running `rollora local`; defaults to .rollora if one runs there and no cluster is selected
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Arguments)]
pub(crate) struct ClusterArgs {
    /// Namespace of the Rollout on a cluster; defaults to the namespace of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "state")]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig; defaults to the current one
    #[arg(long, value_name = "NAME", conflicts_with = "state")]
    pub(crate) context: Option<String>,
    /// Path of the kubeconfig; defaults to KUBECONFIG, then to ~/.kube/config
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Arguments)]
pub(crate) struct GetArgs {
    /// Output format: `table` for people, `json` for tools
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: OutputFormat,
    #[command(flatten)]
    pub(crate) rollout: RolloutArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Table,
    Json,
}

#[derive(Debug, Arguments)]
pub(crate) struct StatusArgs {
    /// Keep running, and show every change
    #[arg(short, long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) rollout: RolloutArgs,
}

#[derive(Debug, Arguments)]
pub(crate) struct PromoteArgs {
    /// Skip all remaining steps; the checks before a weight change still apply
    #[arg(long)]
    pub(crate) full: bool,
    #[command(flatten)]
    pub(crate) rollout: RolloutArgs,
}
