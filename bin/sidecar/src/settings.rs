//! Validates the command line. Reports all errors together, each with its flag.

use crate::{
    adapter_cache::AdapterCache,
    api_key,
    args::{Args, ConfigMapRef, FlagDuration, LogFormat},
    reloadable::Reloadable,
    server_endpoint::ServerEndpoint,
    tls::TlsSettings,
};
use rollora_sidecar::{AdapterSourcePolicy, PollIntervals, SidecarPolicy, source::SourceAllowlist};
use rollora_vllm::{ApiKey, Timeouts};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

/// All settings of the program, validated.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The address of the HTTP endpoints.
    pub(crate) listen: SocketAddr,
    /// Location of the adapters file: the mount, and optionally the API.
    pub(crate) config_location: ConfigLocation,
    /// Host of vLLM, which overrides the one in the file.
    pub(crate) vllm_host: Option<String>,
    /// The API key of vLLM, reloaded from its file.
    pub(crate) api_key: Reloadable<ApiKey>,
    /// Whether vLLM uses TLS, and which CAs are trusted.
    pub(crate) tls: TlsSettings,
    /// The name by which the operator knows this pod.
    pub(crate) pod_name: String,
    /// The folder of the state file; `None` if nothing is persisted.
    pub(crate) state_dir: Option<PathBuf>,
    /// Timeouts of the calls to vLLM.
    pub(crate) timeouts: Timeouts,
    /// Limits and delays that decisions depend on.
    pub(crate) policy: SidecarPolicy,
    /// Which sources are allowed, and which are fetched.
    pub(crate) source_policy: AdapterSourcePolicy,
    /// The folder that hub adapters are fetched into, if any.
    pub(crate) adapter_cache: Option<Arc<AdapterCache>>,
    /// How long vLLM may be down before an error is logged.
    pub(crate) health_check_timeout: Duration,
    /// How long a shutdown waits for calls in flight.
    pub(crate) stop_timeout: Duration,
    /// Format of the log on standard error.
    pub(crate) log_format: LogFormat,
    /// Notes about given flags that have no effect.
    pub(crate) ignored_flags: Vec<String>,
}

/// Location of the adapters file: the mount, and optionally the API.
#[derive(Debug)]
pub(crate) struct ConfigLocation {
    /// The ConfigMap to watch through the API, if any.
    pub(crate) configmap: Option<ConfigMapRef>,
    /// The path of the mounted file.
    pub(crate) file: PathBuf,
    /// The ConfigMap key that holds the file.
    pub(crate) configmap_key: String,
}

impl TryFrom<Args> for Settings {
    type Error = Vec<String>;

    fn try_from(args: Args) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let cache = AdapterCache::open(&args).map_err(|problem| problems.push(problem)).ok().flatten().map(Arc::new);
        let vllm_host = args.vllm_host.filter(|host| !host.is_empty());
        if let Err(problem) = ServerEndpoint::new(None, vllm_host.as_deref(), None) {
            problems.push(format!("--vllm-host: {problem}"));
        }
        if !args.config_validation {
            problems.push("--config-validation: an invalid file is never used: leave the flag out".to_owned());
        }
        let api_key = api_key::open(args.api_key_file).map_err(|problem| problems.push(problem)).ok();
        let tls = TlsSettings::open(args.vllm_tls, args.vllm_ca_file, args.vllm_server_name);
        let tls = tls.map_err(|problem| problems.push(problem)).ok();
        let pod_name = args.pod_name.filter(|pod_name| !pod_name.is_empty()).or_else(hostname);
        if pod_name.is_none() {
            problems.push("--pod-name: cannot read the hostname: give the name of the pod".to_owned());
        }
        let (Some(api_key), Some(tls), Some(pod_name), true) = (api_key, tls, pod_name, problems.is_empty()) else {
            return Err(problems);
        };
        let ignored_flags = describe_ignored_flags(args.health_check_interval);
        Ok(Self {
            listen: SocketAddr::new(args.address, args.metrics_port),
            config_location: ConfigLocation {
                configmap: args.configmap,
                file: args.config,
                configmap_key: args.configmap_key,
            },
            vllm_host,
            api_key,
            tls,
            pod_name,
            state_dir: args.state_dir,
            timeouts: Timeouts { load: args.load_timeout.0, ..Timeouts::default() },
            policy: SidecarPolicy {
                max_parallel: args.max_parallel,
                probe_enabled: args.probe,
                unload_grace: args.unload_grace.0,
                settle_timeout: args.settle_timeout.0,
                intervals: PollIntervals { models: args.reconcile_trigger.0, ..PollIntervals::default() },
                ..SidecarPolicy::default()
            },
            source_policy: AdapterSourcePolicy {
                adapter_source: cache.as_deref().map(AdapterCache::adapter_source),
                allowed: (!args.allow_source.is_empty()).then(|| SourceAllowlist::new(args.allow_source)),
            },
            adapter_cache: cache,
            health_check_timeout: args.health_check_timeout.0,
            stop_timeout: args.stop_timeout.0,
            log_format: args.log_format,
            ignored_flags,
        })
    }
}

fn describe_ignored_flags(interval: FlagDuration) -> Vec<String> {
    let health = PollIntervals::default().health;
    let note = format!("--health-check-interval has no effect: vLLM's health is polled every {health:?}");
    if interval.0 == Duration::from_secs(2) { Vec::new() } else { vec![note] }
}

/// The hostname from the environment of a pod's container, or else from the kernel.
fn hostname() -> Option<String> {
    let environment_name = std::env::var("HOSTNAME").ok();
    let name = environment_name.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
