//! Metrics of the sidecar. Counters are kept here; gauges are built from the status at each scrape, so that a removed
//! adapter leaves no series behind.
//!
//! Labels are bounded: states, kinds of calls and reasons of errors are enumerations, and at most
//! [`MAX_NAMED_ADAPTERS`] adapters of the status are named.

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use rollora_api::sidecar_status::{AdapterState, SidecarStatus};
use rollora_sidecar::CompletedCall;
use std::{fmt, sync::atomic::AtomicU64, time::Duration};

/// Adapters beyond this number are only counted, in `rollora_sidecar_adapters`.
const MAX_NAMED_ADAPTERS: usize = 2000;

/// The counters and histograms, and the encoder of all metrics.
#[derive(Debug)]
pub(crate) struct SidecarMetrics {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    call_seconds: Family<CallKindLabels, Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallKindLabels {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdapterLabels {
    adapter_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdapterStateLabels {
    adapter_name: String,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HashLabels {
    hash: String,
}

/// Ages that are not part of the status; `None` before the first event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ages {
    /// How long the active adapters file has been active.
    pub(crate) config: Option<Duration>,
    /// How long ago the last poll of vLLM ended.
    pub(crate) last_poll: Option<Duration>,
    /// How long ago vLLM's models were last compared with the file.
    pub(crate) last_reconcile: Option<Duration>,
}

impl SidecarMetrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let calls = Family::<CallLabels, Counter>::default();
        let help = "Loads, probes, unloads and fetches of adapters, by kind and outcome";
        registry.register("rollora_sidecar_calls", help, calls.clone());
        let call_seconds = Family::<CallKindLabels, Histogram>::new_with_constructor(call_seconds_histogram);
        let help = "Duration of loads, probes, unloads and fetches of adapters, by kind";
        registry.register("rollora_sidecar_call_seconds", help, call_seconds.clone());
        Self { registry, calls, call_seconds }
    }

    /// Counts a completed call.
    pub(crate) fn record_call(&self, call: &CompletedCall<'_>) {
        let CompletedCall { kind, outcome, .. } = *call;
        self.calls.get_or_create(&CallLabels { call: kind, outcome }).inc();
        self.call_seconds.get_or_create(&CallKindLabels { call: kind }).observe(call.duration.as_secs_f64());
    }

    /// Returns all metrics in the OpenMetrics text format.
    pub(crate) fn encode(&self, status: &SidecarStatus, ages: Ages) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry)?;
        text::encode_registry(&mut text, &status_registry(status, ages))?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Buckets from 5 ms, the duration of a load from disk, to more than 5 minutes, as a load from a hub may take.
fn call_seconds_histogram() -> Histogram {
    // The library's `exponential_buckets` computes powers, which would be the only use of the C math library.
    Histogram::new(std::iter::successors(Some(0.005), |seconds| Some(seconds * 2.0)).take(17))
}

/// The gauges that follow from the status.
fn status_registry(status: &SidecarStatus, ages: Ages) -> Registry {
    let mut registry = Registry::default();
    let flag = |registry: &mut Registry, name: &str, help: &str, value: bool| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value.into());
        registry.register(name, help, gauge);
    };
    flag(
        &mut registry,
        "rollora_sidecar_ready",
        "Whether vLLM is ready for requests (1) or not (0)",
        status.readiness.ready,
    );
    flag(&mut registry, "rollora_sidecar_vllm_up", "Whether vLLM answers (1) or not (0)", status.server.is_some());
    let help = "Whether /status reports an error for newer content of the adapters file (1) or not (0)";
    flag(&mut registry, "rollora_sidecar_config_error", help, status.config.error.is_some());
    let help = "Whether the active content has operator directives (1) or not (0)";
    flag(&mut registry, "rollora_sidecar_operator_directives", help, status.config.operator_directives);
    let age = |registry: &mut Registry, name: &str, help: &str, age: Option<Duration>| {
        if let Some(age) = age {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(age.as_secs_f64());
            registry.register(name, help, gauge);
        }
    };
    let help = "Time since the active adapters file became active";
    age(&mut registry, "rollora_sidecar_config_age_seconds", help, ages.config);
    age(&mut registry, "rollora_sidecar_last_poll_age_seconds", "Time since the last poll of vLLM", ages.last_poll);
    let help = "Time since vLLM's models were last compared with the adapters file";
    age(&mut registry, "rollora_sidecar_last_reconcile_age_seconds", help, ages.last_reconcile);
    if let Some(hash) = &status.config.hash {
        let info = Family::<HashLabels, Gauge>::default();
        info.get_or_create(&HashLabels { hash: hash.to_string() }).set(1);
        registry.register("rollora_sidecar_config_info", "Hash of the active adapters file", info);
    }
    register_adapters(&mut registry, status);
    registry
}

fn register_adapters(registry: &mut Registry, status: &SidecarStatus) {
    let by_name = Family::<AdapterLabels, Gauge>::default();
    let by_state = Family::<AdapterStateLabels, Gauge>::default();
    let attempts = Family::<AdapterLabels, Gauge>::default();
    let counts = Family::<StateLabels, Gauge>::default();
    for (index, adapter) in status.adapters.iter().enumerate() {
        let state = format!("{:?}", adapter.state);
        counts.get_or_create(&StateLabels { state: state.clone() }).inc();
        if index >= MAX_NAMED_ADAPTERS {
            continue;
        }
        let name = AdapterLabels { adapter_name: adapter.id.to_string() };
        // A server that cannot be reached holds nothing that a request could use.
        let loaded = status.server.is_some() && is_loaded(adapter.state);
        by_name.get_or_create(&name).set(loaded.into());
        if adapter.attempts > 0 {
            attempts.get_or_create(&name).set(adapter.attempts.into());
        }
        let AdapterLabels { adapter_name } = name;
        by_state.get_or_create(&AdapterStateLabels { adapter_name, state }).set(1);
    }
    let help = "Whether the adapter is loaded (1) or not (0), as in lora-syncer";
    registry.register("lora_syncer_adapter_status", help, by_name);
    registry.register("rollora_sidecar_adapter_state", "State of the adapter, as in /status", by_state);
    let help = "Failed attempts since the adapter's entry or the server last changed";
    registry.register("rollora_sidecar_adapter_attempts", help, attempts);
    registry.register("rollora_sidecar_adapters", "Number of adapters in each state", counts);
}

fn is_loaded(state: AdapterState) -> bool {
    state.is_resident() || state == AdapterState::Unloading
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::{
        names::AdapterId,
        sidecar_status::{AdapterStatus, ServerIdentity},
    };

    fn adapter_status(name: &str, state: AdapterState, attempts: u32) -> AdapterStatus {
        AdapterStatus { attempts, ..AdapterStatus::new(AdapterId::new(name).unwrap(), state) }
    }

    fn encode(metrics: &SidecarMetrics, status: &SidecarStatus) -> String {
        metrics
            .encode(status, Ages { config: Some(Duration::from_secs(3)), last_poll: None, last_reconcile: None })
            .unwrap()
    }

    #[test]
    fn lora_syncer_gauge_includes_failed_adapters() {
        let mut status = SidecarStatus {
            server: Some(ServerIdentity { endpoint: "http://v".into(), start: "1".into() }),
            adapters: vec![
                adapter_status("v1", AdapterState::Verified, 0),
                adapter_status("v2", AdapterState::Failed, 3),
            ],
            ..SidecarStatus::default()
        };
        let metrics = SidecarMetrics::new();
        let text = encode(&metrics, &status);
        for line in [
            "lora_syncer_adapter_status{adapter_name=\"v1\"} 1",
            "lora_syncer_adapter_status{adapter_name=\"v2\"} 0",
            "rollora_sidecar_adapter_state{adapter_name=\"v2\",state=\"Failed\"} 1",
            "rollora_sidecar_adapter_attempts{adapter_name=\"v2\"} 3",
            "rollora_sidecar_adapters{state=\"Verified\"} 1",
            "rollora_sidecar_config_age_seconds 3.0",
            "rollora_sidecar_vllm_up 1",
        ] {
            assert!(text.lines().any(|existing| existing == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        status.server = None;
        let text = encode(&metrics, &status);
        assert!(text.contains("lora_syncer_adapter_status{adapter_name=\"v1\"} 0"), "{text}");
        status.adapters.clear();
        assert!(!encode(&metrics, &status).contains("v1"), "a removed adapter must leave no series");
    }

    #[test]
    fn calls_are_counted_by_kind_and_outcome() {
        let metrics = SidecarMetrics::new();
        let id = AdapterId::new("v1").unwrap();
        for outcome in ["Success", "RuntimeUpdatingOff", "RuntimeUpdatingOff"] {
            metrics.record_call(&CompletedCall { kind: "load", id: &id, outcome, duration: Duration::from_millis(20) });
        }
        let text = encode(&metrics, &SidecarStatus::default());
        assert!(text.contains("rollora_sidecar_calls_total{call=\"load\",outcome=\"RuntimeUpdatingOff\"} 2"), "{text}");
        assert!(text.contains("rollora_sidecar_calls_total{call=\"load\",outcome=\"Success\"} 1"), "{text}");
        assert!(text.contains("rollora_sidecar_call_seconds_count{call=\"load\"} 3"), "{text}");
    }

    #[test]
    fn number_of_series_is_bounded() {
        let adapters =
            (0..MAX_NAMED_ADAPTERS + 500).map(|n| adapter_status(&format!("v{n}"), AdapterState::Pending, 0)).collect();
        let status = SidecarStatus { adapters, ..SidecarStatus::default() };
        let text = encode(&SidecarMetrics::new(), &status);
        assert_eq!(text.matches("lora_syncer_adapter_status{").count(), MAX_NAMED_ADAPTERS);
        assert!(text.contains(&format!("rollora_sidecar_adapters{{state=\"Pending\"}} {}", MAX_NAMED_ADAPTERS + 500)));
    }
}
