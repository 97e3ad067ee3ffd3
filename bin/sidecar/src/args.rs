//! What was typed. What it means is said in `settings`.

use clap::{Parser, ValueEnum};
use rollora_api::duration::GatewayDuration;
use rollora_sidecar::source::SourcePrefix;
use rollora_vllm::ServerName;
use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

/// Keeps the vLLM server of its pod at exactly what the adapters file says: loads, proves and unloads LoRA adapters.
///
/// Takes the place of lora-syncer: same file, same flags, same environment, same gauge.
#[derive(Debug, Parser)]
#[command(name = "rollora-sidecar", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Args {
    /// The adapters file, as a ConfigMap is mounted (the folder, not a subPath: those are never updated)
    #[arg(long, value_name = "FILE", env = "DYNAMIC_LORA_ROLLOUT_CONFIG", default_value = "/config/configmap.yaml")]
    pub(crate) config: PathBuf,
    /// Watches this ConfigMap through the API, which takes milliseconds where a mount takes up to two minutes. The
    /// file of --config holds until the ConfigMap was seen for the first time
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) configmap: Option<ConfigMapRef>,
    /// The key of the ConfigMap that holds the adapters file
    #[arg(long, value_name = "KEY", default_value = "configmap.yaml")]
    pub(crate) configmap_key: String,
    /// Where vLLM is, in the place of the file's `host` (else localhost). The port is the file's `port` (else 8000)
    #[arg(long, value_name = "HOST", env = "ROLLORA_VLLM_HOST")]
    pub(crate) vllm_host: Option<String>,
    /// A file with vLLM's API key; read again when it changes. Else VLLM_API_KEY, where that is set
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// vLLM speaks TLS: it was started with a certificate (its ssl-certfile and ssl-keyfile)
    #[arg(long)]
    pub(crate) vllm_tls: bool,
    /// A PEM file with the certificate of the CA that signed vLLM's; read again when it changes. Means --vllm-tls.
    /// Without it, whom the system trusts
    #[arg(long, value_name = "FILE")]
    pub(crate) vllm_ca_file: Option<PathBuf>,
    /// The name in vLLM's certificate, where it is another than the host under which vLLM is reached
    #[arg(long, value_name = "NAME")]
    pub(crate) vllm_server_name: Option<ServerName>,
    /// Takes adapters from there only: below an absolute path like /adapters, of an organisation of the hub like
    /// my-org/, or one repository like my-org/my-adapter. May be given several times. Without it, from anywhere
    #[arg(long, value_name = "PREFIX", env = "ROLLORA_ALLOW_SOURCE", value_delimiter = ',')]
    pub(crate) allow_source: Vec<SourcePrefix>,
    /// A folder that vLLM sees under the same path: adapters of a hub are fetched into it and loaded from there. Without
    /// it vLLM is given the hub's name, and downloads inside its engine while nobody is answered
    #[arg(long, value_name = "DIR")]
    pub(crate) adapters_dir: Option<PathBuf>,
    /// How long a fetched adapter is kept after it was last wanted; at least an hour
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub(crate) adapters_keep: FlagDuration,
    /// How much fetched adapters may take together, in bytes or like 50Gi; what nobody wants any more goes sooner then.
    /// Without it, as much as there is
    #[arg(long, value_name = "SIZE")]
    pub(crate) adapters_max_size: Option<ByteSize>,
    /// How large one adapter may be
    #[arg(long, value_name = "SIZE", default_value = "16Gi")]
    pub(crate) adapter_max_size: ByteSize,
    /// The highest rank that vLLM takes (its --max-lora-rank): a fetched adapter with a higher one is refused before
    /// its weights are downloaded. Without it, vLLM says so when it loads it
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_lora_rank: Option<u32>,
    /// The hub
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT", default_value = "https://huggingface.co")]
    pub(crate) hf_endpoint: String,
    /// A file with the hub's token; read again for every fetch. Else HF_TOKEN, where that is set
    #[arg(long, value_name = "FILE")]
    pub(crate) hf_token_file: Option<PathBuf>,
    /// The name by which the operator knows this pod; else the hostname
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub(crate) pod_name: Option<String>,
    /// Where what has to survive a restart of the sidecar is kept: an emptyDir. Else nothing is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// How long vLLM may take for one load. It may download meanwhile
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(crate) load_timeout: FlagDuration,
    /// How many adapters are loaded from paths at the same time. Those from a hub are loaded one by one
    #[arg(long, value_name = "NUMBER", default_value = "4", value_parser = parse_adapter_count)]
    pub(crate) max_parallel: usize,
    /// Proves every loaded adapter with a completion of one token
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_value = "true", default_missing_value = "true",
          action = clap::ArgAction::Set)]
    pub(crate) probe: bool,
    /// An adapter that was used within this time is not unloaded
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(crate) unload_grace: FlagDuration,
    /// How long after vLLM's start adapters that nothing serves by yet may hold back readiness
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(crate) settle_timeout: FlagDuration,

    /// How long calls under way may take to end after SIGTERM. Nothing new is begun meanwhile
    #[arg(long, value_name = "DURATION", default_value = "20s")]
    pub(crate) stop_timeout: FlagDuration,

    /// Where /status, /metrics, /readyz and /livez are served
    #[arg(long, value_name = "IP", env = "POD_IP", default_value = "0.0.0.0", value_parser = parse_address)]
    pub(crate) address: IpAddr,
    /// The port of the same
    #[arg(long, value_name = "PORT", default_value = "8080")]
    pub(crate) metrics_port: u16,
    /// How to log. RUST_LOG says how much
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// How long vLLM may be away before that is logged as an error. It is waited for however long it takes
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    pub(crate) health_check_timeout: FlagDuration,
    /// Accepted as lora-syncer had it; vLLM's health is asked every quarter of a second
    #[arg(long, value_name = "SECONDS", default_value = "2")]
    pub(crate) health_check_interval: FlagDuration,
    /// How often vLLM's models are compared with the file although nothing seems to have changed
    #[arg(long, value_name = "SECONDS", default_value = "5")]
    pub(crate) reconcile_trigger: FlagDuration,
    /// Accepted as lora-syncer had it; the file is always checked, and a bad one changes nothing
    #[arg(long, value_name = "true", num_args = 0..=1, default_value = "true", default_missing_value = "true",
          action = clap::ArgAction::Set, hide_possible_values = true)]
    pub(crate) config_validation: bool,
}

const EXAMPLES: &str = "\
Examples:
  As lora-syncer was run, with the ConfigMap mounted at /config:
    rollora-sidecar
  Through the API, with a role that may get, list and watch this one ConfigMap:
    rollora-sidecar --configmap default/vllm-qwen3-32b-adapters --state-dir /state
  On a desk, beside a vLLM at port 8000:
    rollora-sidecar --config adapters.yaml --address 127.0.0.1 --metrics-port 8081
    curl -s http://127.0.0.1:8081/status

Durations are written 90s, 5m, 1h30m or 500ms; a bare number means seconds.";

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A duration; a bare number means seconds, as it did for lora-syncer.
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

/// Bytes.
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
    number.ok_or_else(|| "not a number of adapters: write one from 1, like 4".to_owned())
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "not an IP address: write one like 127.0.0.1, or 0.0.0.0 for all of this pod".to_owned())
}

/// A ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigMapRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FromStr for ConfigMapRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // As the API server wants names: else it would answer something that nobody understands.
        let good = |name: &str| {
            !name.is_empty()
                && name.len() <= 253
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
        };
        match text.split_once('/') {
            Some((namespace, name)) if good(namespace) && good(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("not a ConfigMap: write its namespace and name, like default/vllm-adapters".to_owned()),
        }
    }
}
