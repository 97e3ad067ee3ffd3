//! What was typed, understood: every value checked, every mistake said at once.

#[cfg(test)]
mod tests;

use crate::args::ClusterArgs;
use crate::{
    args::{Args, CommandArgs as Typed, GetArgs, LocalArgs, OutputFormat, RolloutArgs},
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

/// The state folder where none is named.
const DEFAULT_STATE_FOLDER: &str = ".rollora";

/// What to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run on this machine.
    Local(Box<LocalConfig>),
    /// Show something.
    Show {
        /// Of which Rollout.
        rollout: RolloutRef,
        /// What.
        mode: ShowMode,
    },
    /// Ask for something.
    Intent {
        /// Of which Rollout.
        rollout: RolloutRef,
        /// What for.
        kind: IntentKind,
    },
}

/// A Rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RolloutRef {
    /// Where it is.
    pub(crate) location: RolloutLocation,
    /// Its name; the only one there is if absent.
    pub(crate) name: Option<String>,
}

/// Where a Rollout is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RolloutLocation {
    /// At the `rollora local` of this state folder.
    Local(PathBuf),
    /// On a cluster.
    Cluster(ClusterLocation),
}

/// Which cluster, and where there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClusterLocation {
    /// Else the namespace of the kubeconfig's context.
    pub(crate) namespace: Option<String>,
    /// Else the kubeconfig's current one.
    pub(crate) context: Option<String>,
    /// Else that of the environment.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Nothing was said of a cluster: it is meant because nothing runs here.
    pub(crate) is_default: bool,
}

impl RolloutRef {
    /// What is meant; `runs` says whether a `rollora local` has left its socket in a state folder.
    fn resolve(typed: RolloutArgs, runs: impl Fn(&Path) -> bool) -> Self {
        let here = PathBuf::from(DEFAULT_STATE_FOLDER);
        let by_default = typed.cluster == ClusterArgs::default();
        let location = match typed.state {
            Some(state) => RolloutLocation::Local(state),
            None if by_default && runs(&here) => RolloutLocation::Local(here),
            None => {
                let ClusterArgs { namespace, context, kubeconfig } = typed.cluster;
                RolloutLocation::Cluster(ClusterLocation { namespace, context, kubeconfig, is_default: by_default })
            }
        };
        Self { location, name: typed.rollout }
    }
}

impl From<RolloutArgs> for RolloutRef {
    fn from(typed: RolloutArgs) -> Self {
        Self::resolve(typed, |state| state.join(SOCKET_NAME).exists())
    }
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShowMode {
    /// One line.
    Summary,
    /// The whole Rollout.
    Json,
    /// One screen.
    Status,
    /// One screen after the other.
    Watch,
    /// Why it does not move.
    Explain,
}

impl TryFrom<Args> for Command {
    type Error = CliError;

    fn try_from(args: Args) -> Result<Self, CliError> {
        let look = |typed: RolloutArgs, what| Ok(Self::Show { rollout: typed.into(), mode: what });
        let act = |typed: RolloutArgs, verb| Ok(Self::Intent { rollout: typed.into(), kind: verb });
        match args.command {
            Typed::Local(typed) => {
                local_config(typed).map(|config| Self::Local(Box::new(config))).map_err(CliError::BadInput)
            }
            Typed::Get(GetArgs { output: OutputFormat::Table, rollout: state }) => look(state, ShowMode::Summary),
            Typed::Get(GetArgs { output: OutputFormat::Json, rollout: state }) => look(state, ShowMode::Json),
            Typed::Status(typed) => look(typed.rollout, if typed.watch { ShowMode::Watch } else { ShowMode::Status }),
            Typed::Explain(typed) => look(typed, ShowMode::Explain),
            Typed::Promote(typed) => {
                act(typed.rollout, if typed.full { IntentKind::PromoteFull } else { IntentKind::Promote })
            }
            Typed::Abort(typed) => act(typed, IntentKind::Abort),
            Typed::Retry(typed) => act(typed, IntentKind::Retry),
        }
    }
}

fn local_config(typed: LocalArgs) -> Result<LocalConfig, Vec<String>> {
    let mut problems = Vec::new();
    let mut servers: Vec<Endpoint> = Vec::new();
    for text in &typed.vllm {
        match parse_server_url(text) {
            Ok(server) if servers.iter().any(|known| known.authority() == server.authority()) => {
                problems.push(format!("--vllm {text}: this server is named twice: name each once"));
            }
            Ok(server) => servers.push(server),
            Err(problem) => problems.push(format!("--vllm {text}: {problem}")),
        }
    }
    let key = read_api_key(typed.vllm_api_key_file.as_deref()).map_err(|problem| problems.push(problem)).ok().flatten();
    let listen = parse_address("--listen", &typed.listen).map_err(|problem| problems.push(problem)).ok();
    let status_listen = typed.status_listen.as_deref().map(|text| parse_address("--status-listen", text)).transpose();
    let status_listen = status_listen.map_err(|problem| problems.push(problem)).ok().flatten();
    let max_body = parse_size(&typed.max_body).map_err(|problem| problems.push(problem)).ok();
    match (listen, max_body) {
        (Some(listen), Some(max_body)) if problems.is_empty() => Ok(LocalConfig {
            inputs: InputFiles { rollout: typed.rollout, adapters: typed.adapters },
            servers: servers.into_iter().map(|server| server.with_api_key(key.clone())).collect(),
            listen,
            state: typed.state,
            status_listen,
            max_body,
        }),
        _ => Err(problems),
    }
}

/// The key in the file, else the one of the environment.
fn read_api_key(file: Option<&Path>) -> Result<Option<ApiKey>, String> {
    let text = match file {
        None => std::env::var("VLLM_API_KEY").ok().filter(|key| !key.trim().is_empty()),
        Some(file) => {
            let said = |problem: &dyn Display| format!("--vllm-api-key-file {}: {problem}", file.display());
            let text = fs::read_to_string(file).map_err(|error| said(&format!("cannot be read: {error}")))?;
            if text.trim().is_empty() {
                return Err(said(&"is empty: write the key into it"));
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
