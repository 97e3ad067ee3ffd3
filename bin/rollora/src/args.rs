//! What was typed. What it means is said in `command`.

use clap::{Args as Arguments, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Ships new versions of LoRA adapters to vLLM, step by step.
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

Without options the verbs speak of the `rollora local` whose state folder is .rollora here, where one runs, else of the
cluster and the namespace that kubectl would speak of. --state means a `rollora local`, -n, --context and --kubeconfig
mean a cluster. Installed as kubectl-rollora, it is `kubectl rollora` too.";

const LOCAL_AFTER_HELP: &str = "\
Edit the two files with any editor: listing a new version in adapters.yaml is the release. What runs is seen with
`rollora status --watch` in another terminal.

Examples:
  rollora local --rollout rollout.yaml --adapters adapters.yaml --vllm http://127.0.0.1:8000
  rollora local --rollout rollout.yaml --adapters adapters.yaml \\
      --vllm http://127.0.0.1:8001 --vllm http://127.0.0.1:8002 --listen 0.0.0.0:8080 --status-listen 127.0.0.1:9090";

#[derive(Debug, Subcommand)]
pub(crate) enum CommandArgs {
    /// Runs everything on this machine: beside your vLLM servers, with a gateway in front of them
    #[command(after_help = LOCAL_AFTER_HELP)]
    Local(LocalArgs),
    /// Shows the Rollout in one line, or whole
    Get(GetArgs),
    /// Shows steps, weights, servers and what it waits for
    Status(StatusArgs),
    /// Says why it does not move, and what to do
    Explain(RolloutArgs),
    /// Ends the pause that the rollout is in
    #[command(after_help = "Examples:\n  rollora promote\n  rollora promote --full")]
    Promote(PromoteArgs),
    /// Gives all traffic back to the stable adapter
    Abort(RolloutArgs),
    /// Tries a rejected adapter again
    Retry(RolloutArgs),
}

#[derive(Debug, Arguments)]
pub(crate) struct LocalArgs {
    /// The Rollout: which name clients send, and the steps
    #[arg(long, value_name = "FILE")]
    pub(crate) rollout: PathBuf,
    /// The adapters file: which adapters vLLM holds
    #[arg(long, value_name = "FILE")]
    pub(crate) adapters: PathBuf,
    /// A vLLM server, once for each
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) vllm: Vec<String>,
    /// Where clients send their requests
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// Where the state is kept between starts
    #[arg(long, value_name = "DIR", default_value = ".rollora")]
    pub(crate) state: PathBuf,
    /// Where /metrics, /rules and /readyz can be read; nowhere if absent
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) status_listen: Option<String>,
    /// The longest request body
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) max_body: String,
    /// A file with the API key of the vLLM servers; read at the start. Else VLLM_API_KEY, where that is set
    #[arg(long, value_name = "FILE")]
    pub(crate) vllm_api_key_file: Option<PathBuf>,
}

#[derive(Debug, Arguments)]
pub(crate) struct RolloutArgs {
    /// The Rollout; may be left out where only one is
    #[arg(value_name = "NAME")]
    pub(crate) rollout: Option<String>,
    /// The state folder of the `rollora local` that is meant; .rollora where nothing is said and one runs there
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// Which cluster is meant.
#[derive(Debug, Default, Clone, PartialEq, Eq, Arguments)]
pub(crate) struct ClusterArgs {
    /// The namespace of the Rollout on a cluster; else that of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "state")]
    pub(crate) namespace: Option<String>,
    /// The context of the kubeconfig; else its current one
    #[arg(long, value_name = "NAME", conflicts_with = "state")]
    pub(crate) context: Option<String>,
    /// The kubeconfig; else that of KUBECONFIG, else ~/.kube/config
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Arguments)]
pub(crate) struct GetArgs {
    /// `table` for people, `json` for tools
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
    /// Stays, and shows every change
    #[arg(short, long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) rollout: RolloutArgs,
}

#[derive(Debug, Arguments)]
pub(crate) struct PromoteArgs {
    /// Skips all steps that are left; what must be true before traffic moves stays
    #[arg(long)]
    pub(crate) full: bool,
    #[command(flatten)]
    pub(crate) rollout: RolloutArgs,
}
