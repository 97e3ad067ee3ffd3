//! Loading and unloading.

use super::body::LoadRequest;
use super::knobs::{Knobs, LoadFault};
use super::refusal::Refusal;
use super::server::Server;
use super::source::BadSource;
use super::voice::Voice;

/// Loads an adapter, or says why not.
pub(super) async fn load(server: &Server, request: LoadRequest) -> Result<(), Refusal> {
    let LoadRequest { name, source, in_place } = request;
    server.ledger().load(&name);
    if name == server.config.served_model_name {
        return Err(Refusal::NameOfBaseModel(name));
    }
    // From here on one after the other, or as many at a time as it was started for.
    let _turn = server.loading.acquire().await;
    if !in_place && server.adapters().get(&name).is_some() {
        return Err(Refusal::AlreadyLoaded(name));
    }
    server.until_engine_works().await?;
    server.work(server.knob(Knobs::load_time)).await?;
    if let Some(death) = server.knob(|knobs| knobs.deadly_load.get(&name).copied()) {
        return Err(server.die(death, format!("the load of {name:?} ends the server")).await);
    }
    let voice = judge(server, &name, &source)?;
    let mut adapters = server.adapters();
    // Of many loads of one name only the first succeeds, also where they are made at the same time.
    if !in_place && adapters.get(&name).is_some() {
        return Err(Refusal::AlreadyLoaded(name));
    }
    adapters.load(&name, &source, voice);
    Ok(())
}

/// Unloads an adapter, or says why not. Requests that use it go on.
pub(super) fn unload(server: &Server, name: String) -> Result<String, Refusal> {
    server.ledger().unload(&name);
    if server.adapters().unload(&name) { Ok(name) } else { Err(Refusal::NotLoaded(name)) }
}

/// Loads what `--lora-modules` names, without taking time.
pub(super) fn load_modules(server: &Server) -> Result<(), Refusal> {
    for (name, source) in &server.config.lora_modules {
        let voice = judge(server, name, source)?;
        server.adapters().load(name, source, voice);
    }
    Ok(())
}

fn judge(server: &Server, name: &str, source: &str) -> Result<Voice, Refusal> {
    if !server.config.enable_lora {
        return Err(Refusal::Worker("LoRA is not enabled. Use --enable-lora to enable LoRA.".to_owned()));
    }
    let judged = match server.knob(|knobs| knobs.fail_load.get(name).cloned()) {
        None => server.judge.judge(source),
        Some(fault) => Err(simulated(fault, source, server.config.max_lora_rank)),
    };
    judged.map_err(|bad| match bad {
        BadSource::NotFound(source_shown) => Refusal::NoAdapterAt { name: name.to_owned(), source_shown },
        BadSource::Worker(words) => Refusal::Worker(words),
    })
}

fn simulated(fault: LoadFault, source: &str, max_rank: u64) -> BadSource {
    match fault {
        LoadFault::NotFound => BadSource::NotFound(source.to_owned()),
        LoadFault::BadWeights => BadSource::Worker("Error while deserializing header: header too large".to_owned()),
        LoadFault::Rank => BadSource::rank(2 * max_rank, max_rank),
        LoadFault::Worker(words) => BadSource::Worker(words),
    }
}
