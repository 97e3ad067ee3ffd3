//! Loading and unloading of adapters.

use super::knobs::{Knobs, LoadFault};
use super::server::SimulatedServer;
use super::source::SourceError;
use super::text::TextGenerator;
use super::validation::LoadRequest;
use super::vllm_error::VllmError;

/// Loads an adapter, in order with other loads.
pub(super) async fn load(server: &SimulatedServer, request: LoadRequest) -> Result<(), VllmError> {
    let LoadRequest { name, source, in_place } = request;
    server.request_log().record_load(&name);
    if name == server.config.served_model_name {
        return Err(VllmError::BaseModelName(name));
    }
    // From here on, loads run one after the other, or as many concurrently as configured.
    let _permit = server.load_permits.acquire().await;
    if !in_place && server.adapters().get(&name).is_some() {
        return Err(VllmError::AlreadyLoaded(name));
    }
    server.wait_for_engine().await?;
    server.spend_engine_time(server.read_knobs(Knobs::load_time)).await?;
    if let Some(crash_mode) = server.read_knobs(|knobs| knobs.deadly_load.get(&name).copied()) {
        return Err(server.crash_with(crash_mode, format!("loading {name:?} crashes the server")).await);
    }
    let generator = validate_source(server, &name, &source)?;
    let mut adapters = server.adapters();
    // Of concurrent loads of the same name only the first succeeds.
    if !in_place && adapters.get(&name).is_some() {
        return Err(VllmError::AlreadyLoaded(name));
    }
    adapters.load(&name, &source, generator);
    Ok(())
}

/// Unloads an adapter. Requests that use it continue.
pub(super) fn unload(server: &SimulatedServer, name: String) -> Result<String, VllmError> {
    server.request_log().record_unload(&name);
    if server.adapters().unload(&name) { Ok(name) } else { Err(VllmError::NotLoaded(name)) }
}

/// Loads the adapters of `--lora-modules`, without delay.
pub(super) fn load_modules(server: &SimulatedServer) -> Result<(), VllmError> {
    for (name, source) in &server.config.lora_modules {
        let generator = validate_source(server, name, source)?;
        server.adapters().load(name, source, generator);
    }
    Ok(())
}

fn validate_source(server: &SimulatedServer, name: &str, source: &str) -> Result<TextGenerator, VllmError> {
    if !server.config.enable_lora {
        return Err(VllmError::WorkerFailed("LoRA is not enabled. Use --enable-lora to enable LoRA.".to_owned()));
    }
    let result = match server.read_knobs(|knobs| knobs.fail_load.get(name).cloned()) {
        None => server.source_validator.validate(source),
        Some(fault) => Err(simulated_fault(fault, source, server.config.max_lora_rank)),
    };
    result.map_err(|bad| match bad {
        SourceError::NotFound(source_shown) => VllmError::AdapterNotFound { name: name.to_owned(), source_shown },
        SourceError::WorkerFailed(message) => VllmError::WorkerFailed(message),
    })
}

fn simulated_fault(fault: LoadFault, source: &str, max_rank: u64) -> SourceError {
    match fault {
        LoadFault::NotFound => SourceError::NotFound(source.to_owned()),
        LoadFault::BadWeights => {
            SourceError::WorkerFailed("Error while deserializing header: header too large".to_owned())
        }
        LoadFault::Rank => SourceError::rank_too_high(2 * max_rank, max_rank),
        LoadFault::Worker(message) => SourceError::WorkerFailed(message),
    }
}
