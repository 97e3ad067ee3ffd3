//! Loading and unloading.

use super::knobs::{Knobs, LoadFault};
use super::server::SimulatedServer;
use super::source::SourceError;
use super::text::TextGenerator;
use super::validation::LoadRequest;
use super::vllm_error::VllmError;

/// Loads an adapter, or says why not.
pub(super) async fn load(server: &SimulatedServer, request: LoadRequest) -> Result<(), VllmError> {
    let LoadRequest { name, source, in_place } = request;
    server.request_log().record_load(&name);
    if name == server.config.served_model_name {
        return Err(VllmError::BaseModelName(name));
    }
    // From here on one after the other, or as many at a time as it was started for.
    let _turn = server.load_permits.acquire().await;
    if !in_place && server.adapters().get(&name).is_some() {
        return Err(VllmError::AlreadyLoaded(name));
    }
    server.wait_for_engine().await?;
    server.spend_engine_time(server.read_knobs(Knobs::load_time)).await?;
    if let Some(death) = server.read_knobs(|knobs| knobs.deadly_load.get(&name).copied()) {
        return Err(server.crash_with(death, format!("the load of {name:?} ends the server")).await);
    }
    let voice = validate_source(server, &name, &source)?;
    let mut adapters = server.adapters();
    // Of many loads of one name only the first succeeds, also where they are made at the same time.
    if !in_place && adapters.get(&name).is_some() {
        return Err(VllmError::AlreadyLoaded(name));
    }
    adapters.load(&name, &source, voice);
    Ok(())
}

/// Unloads an adapter, or says why not. Requests that use it go on.
pub(super) fn unload(server: &SimulatedServer, name: String) -> Result<String, VllmError> {
    server.request_log().record_unload(&name);
    if server.adapters().unload(&name) { Ok(name) } else { Err(VllmError::NotLoaded(name)) }
}

/// Loads what `--lora-modules` names, without taking time.
pub(super) fn load_modules(server: &SimulatedServer) -> Result<(), VllmError> {
    for (name, source) in &server.config.lora_modules {
        let voice = validate_source(server, name, source)?;
        server.adapters().load(name, source, voice);
    }
    Ok(())
}

fn validate_source(server: &SimulatedServer, name: &str, source: &str) -> Result<TextGenerator, VllmError> {
    if !server.config.enable_lora {
        return Err(VllmError::WorkerFailed("LoRA is not enabled. Use --enable-lora to enable LoRA.".to_owned()));
    }
    let judged = match server.read_knobs(|knobs| knobs.fail_load.get(name).cloned()) {
        None => server.source_validator.validate(source),
        Some(fault) => Err(simulated_fault(fault, source, server.config.max_lora_rank)),
    };
    judged.map_err(|bad| match bad {
        SourceError::NotFound(source_shown) => VllmError::AdapterNotFound { name: name.to_owned(), source_shown },
        SourceError::WorkerFailed(words) => VllmError::WorkerFailed(words),
    })
}

fn simulated_fault(fault: LoadFault, source: &str, max_rank: u64) -> SourceError {
    match fault {
        LoadFault::NotFound => SourceError::NotFound(source.to_owned()),
        LoadFault::BadWeights => {
            SourceError::WorkerFailed("Error while deserializing header: header too large".to_owned())
        }
        LoadFault::Rank => SourceError::rank_too_high(2 * max_rank, max_rank),
        LoadFault::Worker(words) => SourceError::WorkerFailed(words),
    }
}
