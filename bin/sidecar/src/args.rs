//! The command line. Module `settings` validates it.

use clap::{Parser, ValueEnum};
use rollora_api::duration::GatewayDuration;
use rollora_sidecar::source::SourcePrefix;
use rollora_vllm::ServerName;
use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

/// Reconciles the vLLM server of its pod with the adapters file: loads, verifies and unloads LoRA adapters.
///
/// Replaces lora-syncer: same file, same flags, same environment variable, same gauge.
#[derive(Debug, Parser)]
#[command(name = "rollora-sidecar", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Args {
    /// The adapters file in its mounted ConfigMap (mount the whole ConfigMap: a subPath is never updated)
    #[arg(long, value_name = "FILE", env = "DYNAMIC_LORA_ROLLOUT_CONFIG", default_value = "/config/configmap.yaml")]
    pub(crate) config: PathBuf,
    /// Watches this ConfigMap through the API, which delivers changes in milliseconds instead of up to two minutes.
    /// The file of --config is used until the first valid content of the ConfigMap
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) configmap: Option<ConfigMapRef>,
    /// The ConfigMap key that holds the adapters file
    #[arg(long, value_name = "KEY", default_value = "configmap.yaml")]
    pub(crate) configmap_key: String,
    /// Host of vLLM; overrides the file's `host`, which defaults to localhost. The port is the file's `port`, else 8000
    #[arg(long, value_name = "HOST", env = "ROLLORA_VLLM_HOST")]
    pub(crate) vllm_host: Option<String>,
    /// File with vLLM's API key, reloaded on change. Without it, the environment variable VLLM_API_KEY, if set
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Connects to vLLM over TLS: vLLM was started with a certificate (its ssl-certfile and ssl-keyfile)
    #[arg(long)]
    pub(crate) vllm_tls: bool,
    /// PEM file with the CA certificate that signed vLLM's certificate, reloaded on change. Implies --vllm-tls. Without
    /// it, the CAs of the system are trusted
    #[arg(long, value_name = "FILE")]
    pub(crate) vllm_ca_file: Option<PathBuf>,
    /// The name in vLLM's certificate, if it differs from the host under which vLLM is reached
    #[arg(long, value_name = "NAME")]
    pub(crate) vllm_server_name: Option<ServerName>,
    /// Source from which adapters are allowed: an absolute path with everything below it, like /adapters, a hub
    /// organization, like my-org/, or one repository, like my-org/my-adapter. May be repeated. Without it, every source
    /// is allowed
    #[arg(long, value_name = "PREFIX", env = "ROLLORA_ALLOW_SOURCE", value_delimiter = ',')]
    pub(crate) allow_source: Vec<SourcePrefix>,
    /// Folder that vLLM mounts at the same path: hub adapters are fetched into it and loaded from there. Without it,
    /// vLLM gets the hub name and downloads inside its engine, which answers no requests meanwhile
    #[arg(long, value_name = "DIR")]
    pub(crate) adapters_dir: Option<PathBuf>,
    /// How long a fetched adapter is kept after it was last desired; at least one hour
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub(crate) adapters_keep: FlagDuration,
    /// Maximum total size of fetched adapters, in bytes or like 50Gi. Above it, adapters that are not desired are
    /// removed sooner than --adapters-keep says. Without it, there is no limit
    #[arg(long, value_name = "SIZE")]
    pub(crate) adapters_max_size: Option<ByteSize>,
    /// Maximum size of one adapter, in bytes or like 512Mi
    #[arg(long, value_name = "SIZE", default_value = "16Gi")]
    pub(crate) adapter_max_size: ByteSize,
    /// Maximum rank of vLLM (its own --max-lora-rank): a fetched adapter with a higher rank is refused before its
    /// weights are downloaded. Without it, the adapter is downloaded, and vLLM refuses to load it
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_lora_rank: Option<u32>,
    /// URL of the hub or of a mirror
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT", default_value = "https://huggingface.co")]
    pub(crate) hf_endpoint: String,
    /// File with the hub token, read before every fetch. Without it, the environment variable HF_TOKEN, if set
    #[arg(long, value_name = "FILE")]
    pub(crate) hf_token_file: Option<PathBuf>,
    /// Name of this pod as the operator knows it. Without it, the hostname
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub(crate) pod_name: Option<String>,
    /// Folder for the state that survives a restart of the sidecar, such as an emptyDir. Without it, nothing is saved
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Timeout of one load in vLLM, including a download by vLLM
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(crate) load_timeout: FlagDuration,
    /// Maximum number of concurrent loads from paths. Hub names are loaded one at a time
    #[arg(long, value_name = "NUMBER", default_value = "4", value_parser = parse_adapter_count)]
    pub(crate) max_parallel: usize,
    /// Verifies every loaded adapter with a completion of one token
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_value = "true", default_missing_value = "true",
          action = clap::ArgAction::Set)]
    pub(crate) probe: bool,
    /// An adapter that was used within this time is not unloaded
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(crate) unload_grace: FlagDuration,
    /// How long adapters that are neither serving nor required may delay readiness, counted from vLLM's start
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(crate) settle_timeout: FlagDuration,

    /// How long calls to vLLM in flight may take to finish after SIGTERM. No new call is started meanwhile
    #[arg(long, value_name = "DURATION", default_value = "20s")]
    pub(crate) stop_timeout: FlagDuration,

    /// IP address to serve /status, /metrics, /readyz and /livez on
    #[arg(long, value_name = "IP", env = "POD_IP", default_value = "0.0.0.0", value_parser = parse_address)]
    pub(crate) address: IpAddr,
    /// Port to serve /status, /metrics, /readyz and /livez on
    #[arg(long, value_name = "PORT", default_value = "8080")]
    pub(crate) metrics_port: u16,
    /// Log format. The environment variable RUST_LOG sets the level
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// How long vLLM may be down before an error is logged. The sidecar keeps waiting after that
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    pub(crate) health_check_timeout: FlagDuration,
    /// Accepted for compatibility with lora-syncer, without effect: vLLM's health is polled every 250 ms
    #[arg(long, value_name = "SECONDS", default_value = "2")]
    pub(crate) health_check_interval: FlagDuration,
    /// Interval at which vLLM's models are compared with the file even without a known change
    #[arg(long, value_name = "SECONDS", default_value = "5")]
    pub(crate) reconcile_trigger: FlagDuration,
    /// Accepted for compatibility with lora-syncer: the file is always validated, and an invalid one changes nothing
    #[arg(long, value_name = "true", num_args = 0..=1, default_value = "true", default_missing_value = "true",
          action = clap::ArgAction::Set, hide_possible_values = true)]
    pub(crate) config_validation: bool,
}

const EXAMPLES: &str = "\
Examples:
  Like lora-syncer, with the ConfigMap mounted at /config:
    rollora-sidecar
  With a watch through the API; the role must allow get, list and watch of this ConfigMap:
    rollora-sidecar --configmap default/vllm-qwen3-32b-adapters --state-dir /state
  On a workstation, with vLLM at port 8000:
    rollora-sidecar --config adapters.yaml --address 127.0.0.1 --metrics-port 8081
    curl -s http://127.0.0.1:8081/status

Durations are written 90s, 5m, 1h30m or 500ms; a bare number means seconds.";

/// Format of the log on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Plain text for people
    Text,
    /// One JSON object per line
    Json,
}

/// A duration on the command line; a bare number means seconds, as in lora-syncer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlagDuration(pub(crate) Duration);

impl FromStr for FlagDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = match text.parse::<u32>() {
            Ok(seconds) => Duration::from_secs(seconds.into()),
            Err(_) => text
                .parse::<GatewayDuration>()
                .map_err(|_| "not a duration: write seconds like 30, or 90s, 5m, 1h30m, 500ms".to_owned())?
                .get(),
        };
        if duration.is_zero() { Err("zero is too short: give at least 1ms".to_owned()) } else { Ok(Self(duration)) }
    }
}

/// A size on the command line, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
        let unit = units.into_iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
        let (digits, shift) = unit.unwrap_or((text, 0));
        let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        size.filter(|size| *size > 0)
            .map(Self)
            .ok_or_else(|| "not a size: write bytes, or like 50Gi or 512Mi".to_owned())
    }
}

fn parse_adapter_count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "not a number of adapters: write at least 1, like 4".to_owned())
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "not an IP address: write one like 127.0.0.1, or 0.0.0.0 for all of this pod".to_owned())
}

/// Namespace and name of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigMapRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FromStr for ConfigMapRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The rules of the API server, which would answer an invalid name with an obscure error.
        let is_valid = |name: &str| {
            !name.is_empty()
                && name.len() <= 253
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_valid(namespace) && is_valid(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("not a ConfigMap: write its namespace and name, like default/vllm-adapters".to_owned()),
        }
    }
}
