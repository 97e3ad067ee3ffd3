//! What `/metrics` tells. Counters live here; everything that the status says anyway is made of it when asked, so that
//! an adapter that is gone leaves no series behind.
//!
//! Labels are bounded: states, kinds of calls and classes of errors are enumerations, and adapters are named as far as
//! the status names them, at most [`MOST_ADAPTERS`].

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use rollora_api::sidecar_status::{AdapterState, SidecarStatus};
use rollora_sidecar::CompletedCall;
use std::{fmt, sync::atomic::AtomicU64, time::Duration};

/// Adapters above this number are counted and not named.
const MAX_NAMED_ADAPTERS: usize = 2000;

/// Counters.
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

/// What the status does not say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ages {
    /// Since when the file in force is in force.
    pub(crate) config: Option<Duration>,
    /// Since when vLLM has not been looked at.
    pub(crate) last_poll: Option<Duration>,
    /// Since when its models have not been compared with the file.
    pub(crate) last_reconcile: Option<Duration>,
}

impl SidecarMetrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let calls = Family::<CallLabels, Counter>::default();
        let help = "Calls to vLLM about adapters, by what was asked and what came of it";
        registry.register("rollora_sidecar_calls", help, calls.clone());
        let call_seconds = Family::<CallKindLabels, Histogram>::new_with_constructor(call_seconds_histogram);
        let help = "How long vLLM took for calls about adapters";
        registry.register("rollora_sidecar_call_seconds", help, call_seconds.clone());
        Self { registry, calls, call_seconds }
    }

    /// Counts a call that has ended.
    pub(crate) fn record_call(&self, call: &CompletedCall<'_>) {
        let CompletedCall { kind: what, outcome, .. } = *call;
        self.calls.get_or_create(&CallLabels { call: what, outcome }).inc();
        self.call_seconds.get_or_create(&CallKindLabels { call: what }).observe(call.duration.as_secs_f64());
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn encode(&self, status: &SidecarStatus, ages: Ages) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry)?;
        text::encode_registry(&mut text, &status_registry(status, ages))?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

/// From 5 ms, which a load from a disk takes, to more than 5 minutes, which one from a hub may.
fn call_seconds_histogram() -> Histogram {
    // The library's own buckets raise to a power: nothing else would need the C library of mathematics.
    Histogram::new(std::iter::successors(Some(0.005), |seconds| Some(seconds * 2.0)).take(17))
}

/// What the status says, as gauges.
fn status_registry(status: &SidecarStatus, ages: Ages) -> Registry {
    let mut registry = Registry::default();
    let flag = |registry: &mut Registry, name: &str, help: &str, value: bool| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value.into());
        registry.register(name, help, gauge);
    };
    flag(&mut registry, "rollora_sidecar_ready", "Whether requests may be sent to vLLM", status.readiness.ready);
    flag(&mut registry, "rollora_sidecar_vllm_up", "Whether vLLM answers", status.server.is_some());
    let help = "Whether newer content of the adapters file is not in force";
    flag(&mut registry, "rollora_sidecar_config_error", help, status.config.error.is_some());
    let help = "Whether the operator's key is seen beside the adapters file";
    flag(&mut registry, "rollora_sidecar_operator_directives", help, status.config.operator_directives);
    let age = |registry: &mut Registry, name: &str, help: &str, age: Option<Duration>| {
        if let Some(age) = age {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(age.as_secs_f64());
            registry.register(name, help, gauge);
        }
    };
    let help = "For how long the adapters file in force has been in force";
    age(&mut registry, "rollora_sidecar_config_age_seconds", help, ages.config);
    age(&mut registry, "rollora_sidecar_last_look_age_seconds", "How long ago vLLM was looked at last", ages.last_poll);
    let help = "How long ago what vLLM holds was compared with the adapters file last";
    age(&mut registry, "rollora_sidecar_last_reconcile_age_seconds", help, ages.last_reconcile);
    if let Some(hash) = &status.config.hash {
        let info = Family::<HashLabels, Gauge>::default();
        info.get_or_create(&HashLabels { hash: hash.to_string() }).set(1);
        registry.register("rollora_sidecar_config_info", "The hash of the adapters file in force", info);
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
    let help = "Whether the adapter is loaded (1) or not (0), as lora-syncer told it";
    registry.register("lora_syncer_adapter_status", help, by_name);
    registry.register("rollora_sidecar_adapter_state", "The state of the adapter, see /status", by_state);
    let help = "Failed attempts since the adapter's entry or the server last changed";
    registry.register("rollora_sidecar_adapter_attempts", help, attempts);
    registry.register("rollora_sidecar_adapters", "How many adapters are in each state", counts);
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
    fn the_gauge_of_lora_syncer_tells_what_is_loaded_also_of_adapters_that_failed() {
        let mut status = SidecarStatus {
            server: Some(ServerIdentity { endpoint: "http://v".into(), start: "1".into() }),
            adapters: vec![
                adapter_status("v1", AdapterState::Verified, 0),
                adapter_status("v2", AdapterState::Failed, 3),
            ],
            ..SidecarStatus::default()
        };
        let metrics = SidecarMetrics::new();
        let told = encode(&metrics, &status);
        for line in [
            "lora_syncer_adapter_status{adapter_name=\"v1\"} 1",
            "lora_syncer_adapter_status{adapter_name=\"v2\"} 0",
            "rollora_sidecar_adapter_state{adapter_name=\"v2\",state=\"Failed\"} 1",
            "rollora_sidecar_adapter_attempts{adapter_name=\"v2\"} 3",
            "rollora_sidecar_adapters{state=\"Verified\"} 1",
            "rollora_sidecar_config_age_seconds 3.0",
            "rollora_sidecar_vllm_up 1",
        ] {
            assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
        }
        assert!(told.ends_with("# EOF\n"));
        status.server = None;
        let told = encode(&metrics, &status);
        assert!(told.contains("lora_syncer_adapter_status{adapter_name=\"v1\"} 0"), "{told}");
        status.adapters.clear();
        assert!(!encode(&metrics, &status).contains("v1"), "what is gone leaves no series");
    }

    #[test]
    fn calls_are_counted_by_class() {
        let metrics = SidecarMetrics::new();
        let id = AdapterId::new("v1").unwrap();
        for outcome in ["Success", "RuntimeUpdatingOff", "RuntimeUpdatingOff"] {
            metrics.record_call(&CompletedCall { kind: "load", id: &id, outcome, duration: Duration::from_millis(20) });
        }
        let told = encode(&metrics, &SidecarStatus::default());
        assert!(told.contains("rollora_sidecar_calls_total{call=\"load\",outcome=\"RuntimeUpdatingOff\"} 2"), "{told}");
        assert!(told.contains("rollora_sidecar_calls_total{call=\"load\",outcome=\"Success\"} 1"), "{told}");
        assert!(told.contains("rollora_sidecar_call_seconds_count{call=\"load\"} 3"), "{told}");
    }

    #[test]
    fn series_are_bounded_whatever_the_file_lists() {
        let adapters =
            (0..MAX_NAMED_ADAPTERS + 500).map(|n| adapter_status(&format!("v{n}"), AdapterState::Pending, 0)).collect();
        let status = SidecarStatus { adapters, ..SidecarStatus::default() };
        let told = encode(&SidecarMetrics::new(), &status);
        assert_eq!(told.matches("lora_syncer_adapter_status{").count(), MAX_NAMED_ADAPTERS);
        assert!(told.contains(&format!("rollora_sidecar_adapters{{state=\"Pending\"}} {}", MAX_NAMED_ADAPTERS + 500)));
    }
}
