//! Validates the command line: every value is checked, and all mistakes are reported together.

#[cfg(test)]
mod tests;

use crate::args::ClusterArgs;
use crate::{
    args::{Args, CommandArgs, GetArgs, LocalArgs, OutputFormat, RolloutArgs},
    runtime::CliError,
};
use rollora_api::rollout::IntentKind;
use rollora_local::{ApiKey, Endpoint, InputFiles, LocalConfig, SOCKET_NAME, parse_server_url};
use std::{
    fmt::Display,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// State folder that commands use if none is given and one exists.
const DEFAULT_STATE_FOLDER: &str = ".rollora";

/// A validated command line.
#[derive(Debug)]
pub(crate) enum Command {
    Local(Box<LocalConfig>),
    Show { rollout: RolloutRef, mode: ShowMode },
    Intent { rollout: RolloutRef, kind: IntentKind },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RolloutRef {
    pub(crate) location: RolloutLocation,
    /// Name of the Rollout. `None` stands for the only one.
    pub(crate) name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RolloutLocation {
    /// Run by the `rollora local` with this state folder.
    Local(PathBuf),
    Cluster(ClusterLocation),
}

/// Cluster and namespace of a Rollout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClusterLocation {
    /// Namespace. `None` stands for the namespace of the kubeconfig's context.
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig. `None` stands for the current one.
    pub(crate) context: Option<String>,
    /// Path of the kubeconfig. `None` stands for the one of the environment.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Whether no option selects a cluster, which is used because no `rollora local` runs here.
    pub(crate) is_default: bool,
}

impl RolloutRef {
    /// Decides where the Rollout is; `is_running` checks whether a `rollora local` left its socket in a state folder.
    fn resolve(args: RolloutArgs, is_running: impl Fn(&Path) -> bool) -> Self {
        let default_state = PathBuf::from(DEFAULT_STATE_FOLDER);
        let by_default = args.cluster == ClusterArgs::default();
        let location = match args.state {
            Some(state) => RolloutLocation::Local(state),
            None if by_default && is_running(&default_state) => RolloutLocation::Local(default_state),
            None => {
                let ClusterArgs { namespace, context, kubeconfig } = args.cluster;
                RolloutLocation::Cluster(ClusterLocation { namespace, context, kubeconfig, is_default: by_default })
            }
        };
        Self { location, name: args.rollout }
    }
}

impl From<RolloutArgs> for RolloutRef {
    fn from(args: RolloutArgs) -> Self {
        Self::resolve(args, |state| state.join(SOCKET_NAME).exists())
    }
}

/// What `get`, `status` and `explain` print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShowMode {
    /// A table of one row.
    Summary,
    /// The whole Rollout as JSON.
    Json,
    /// The status on one screen.
    Status,
    /// The status, again after every change.
    Watch,
    /// Why the rollout does not progress.
    Explain,
}

impl TryFrom<Args> for Command {
    type Error = CliError;

    fn try_from(args: Args) -> Result<Self, CliError> {
        let show = |args: RolloutArgs, mode| Ok(Self::Show { rollout: args.into(), mode });
        let submit = |args: RolloutArgs, kind| Ok(Self::Intent { rollout: args.into(), kind });
        match args.command {
            CommandArgs::Local(args) => {
                local_config(args).map(|config| Self::Local(Box::new(config))).map_err(CliError::BadInput)
            }
            CommandArgs::Get(GetArgs { output: OutputFormat::Table, rollout }) => show(rollout, ShowMode::Summary),
            CommandArgs::Get(GetArgs { output: OutputFormat::Json, rollout }) => show(rollout, ShowMode::Json),
            CommandArgs::Status(args) => {
                show(args.rollout, if args.watch { ShowMode::Watch } else { ShowMode::Status })
            }
            CommandArgs::Explain(args) => show(args, ShowMode::Explain),
            CommandArgs::Promote(args) => {
                submit(args.rollout, if args.full { IntentKind::PromoteFull } else { IntentKind::Promote })
            }
            CommandArgs::Abort(args) => submit(args, IntentKind::Abort),
            CommandArgs::Retry(args) => submit(args, IntentKind::Retry),
        }
    }
}

fn local_config(args: LocalArgs) -> Result<LocalConfig, Vec<String>> {
    let mut problems = Vec::new();
    let mut servers: Vec<Endpoint> = Vec::new();
    for text in &args.vllm {
        match parse_server_url(text) {
            Ok(server) if servers.iter().any(|known| known.authority() == server.authority()) => {
                problems.push(format!("--vllm {text}: duplicate server: give each server once"));
            }
            Ok(server) => servers.push(server),
            Err(problem) => problems.push(format!("--vllm {text}: {problem}")),
        }
    }
    let api_key = read_api_key(args.vllm_api_key_file.as_deref());
    let api_key = api_key.map_err(|problem| problems.push(problem)).ok().flatten();
    let listen = parse_address("--listen", &args.listen).map_err(|problem| problems.push(problem)).ok();
    let status_listen = args.status_listen.as_deref().map(|text| parse_address("--status-listen", text)).transpose();
    let status_listen = status_listen.map_err(|problem| problems.push(problem)).ok().flatten();
    let max_body = parse_size(&args.max_body).map_err(|problem| problems.push(problem)).ok();
    match (listen, max_body) {
        (Some(listen), Some(max_body)) if problems.is_empty() => Ok(LocalConfig {
            inputs: InputFiles { rollout: args.rollout, adapters: args.adapters },
            servers: servers.into_iter().map(|server| server.with_api_key(api_key.clone())).collect(),
            listen,
            state: args.state,
            status_listen,
            max_body,
        }),
        _ => Err(problems),
    }
}

/// Reads the API key from the file, or else from the environment.
fn read_api_key(file: Option<&Path>) -> Result<Option<ApiKey>, String> {
    let text = match file {
        None => std::env::var("VLLM_API_KEY").ok().filter(|key| !key.trim().is_empty()),
        Some(file) => {
            let describe = |problem: &dyn Display| format!("--vllm-api-key-file {}: {problem}", file.display());
            let text = fs::read_to_string(file).map_err(|error| describe(&format!("cannot be read: {error}")))?;
            if text.trim().is_empty() {
                return Err(describe(&"the file is empty: write the API key into it"));
            }
            Some(text)
        }
    };
    Ok(text.map(|text| ApiKey::new(&text)))
}

fn parse_address(option: &str, text: &str) -> Result<SocketAddr, String> {
    let problem = || format!("{option} {text}: not an address: write one like 127.0.0.1:8080 or [::1]:8080");
    text.parse().map_err(|_| problem())
}

fn parse_size(text: &str) -> Result<usize, String> {
    let problem = || format!("--max-body {text}: not a size: write one like 64MiB, 512KiB or 1048576");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(problem)?;
    let scale = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(problem()),
    };
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(scale));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(problem)
}
