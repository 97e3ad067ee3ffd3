//! What was typed, understood: every value checked, every mistake said at once, with its flag.

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

/// Everything that is given at the start.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where it is told how things are.
    pub(crate) listen: SocketAddr,
    /// Where the adapters file comes from.
    pub(crate) config_location: ConfigLocation,
    /// vLLM's host, over the one of the file.
    pub(crate) vllm_host: Option<String>,
    /// vLLM's key.
    pub(crate) api_key: Reloadable<ApiKey>,
    /// Whether it speaks TLS, and whom it is trusted through.
    pub(crate) tls: TlsSettings,
    /// The name by which the operator knows this pod.
    pub(crate) pod_name: String,
    /// Where is kept what survives a restart.
    pub(crate) state_dir: Option<PathBuf>,
    /// How long calls may take.
    pub(crate) timeouts: Timeouts,
    /// What is decided how.
    pub(crate) policy: SidecarPolicy,
    /// Where adapters may come from.
    pub(crate) source_policy: AdapterSourcePolicy,
    /// The folder that hubs are fetched into.
    pub(crate) adapter_cache: Option<Arc<AdapterCache>>,
    /// For how long vLLM may be away without a complaint.
    pub(crate) health_check_timeout: Duration,
    /// How long calls under way may take to end.
    pub(crate) stop_timeout: Duration,
    /// How to log.
    pub(crate) log_format: LogFormat,
    /// What was typed and has no effect, with the reason.
    pub(crate) ignored_flags: Vec<String>,
}

/// Where the adapters file comes from.
#[derive(Debug)]
pub(crate) struct ConfigLocation {
    /// Watched through the API.
    pub(crate) configmap: Option<ConfigMapRef>,
    /// Where it is mounted.
    pub(crate) file: PathBuf,
    /// The key of the ConfigMap.
    pub(crate) configmap_key: String,
}

impl TryFrom<Args> for Settings {
    type Error = Vec<String>;

    fn try_from(args: Args) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let shelf = AdapterCache::open(&args).map_err(|problem| problems.push(problem)).ok().flatten().map(Arc::new);
        let vllm_host = args.vllm_host.filter(|host| !host.is_empty());
        if let Err(problem) = ServerEndpoint::new(None, vllm_host.as_deref(), None) {
            problems.push(format!("--vllm-host: {problem}"));
        }
        if !args.config_validation {
            problems.push("--config-validation: a bad file is never taken: leave the flag out".to_owned());
        }
        let key = api_key::open(args.api_key_file).map_err(|problem| problems.push(problem)).ok();
        let trust = TlsSettings::open(args.vllm_tls, args.vllm_ca_file, args.vllm_server_name);
        let trust = trust.map_err(|problem| problems.push(problem)).ok();
        let name = args.pod_name.filter(|name| !name.is_empty()).or_else(hostname);
        if name.is_none() {
            problems.push("--pod-name: the hostname cannot be read: give the pod's name".to_owned());
        }
        let (Some(key), Some(trust), Some(name), true) = (key, trust, name, problems.is_empty()) else {
            return Err(problems);
        };
        let notes = describe_ignored_flags(args.health_check_interval);
        Ok(Self {
            listen: SocketAddr::new(args.address, args.metrics_port),
            config_location: ConfigLocation {
                configmap: args.configmap,
                file: args.config,
                configmap_key: args.configmap_key,
            },
            vllm_host,
            api_key: key,
            tls: trust,
            pod_name: name,
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
                adapter_source: shelf.as_deref().map(AdapterCache::adapter_source),
                allowed: (!args.allow_source.is_empty()).then(|| SourceAllowlist::new(args.allow_source)),
            },
            adapter_cache: shelf,
            health_check_timeout: args.health_check_timeout.0,
            stop_timeout: args.stop_timeout.0,
            log_format: args.log_format,
            ignored_flags: notes,
        })
    }
}

fn describe_ignored_flags(interval: FlagDuration) -> Vec<String> {
    let health = PollIntervals::default().health;
    let said = format!("--health-check-interval has no effect: vLLM's health is asked every {health:?}");
    if interval.0 == Duration::from_secs(2) { Vec::new() } else { vec![said] }
}

/// What a pod's containers are given as their name, or the kernel's word for it.
fn hostname() -> Option<String> {
    let given = std::env::var("HOSTNAME").ok();
    let name = given.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
