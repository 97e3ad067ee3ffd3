//! `rollora-operator`: the operator on a cluster. Of several replicas one works, the others wait for its Lease.

mod admin;
mod args;
mod clock;
mod document_store;
mod fleet;
mod known_sidecars;
mod metrics;
mod orphans;
mod pod_client;
mod pod_discovery;
mod response_cache;
mod rewrite_conditions;
mod run;

use clap::Parser as _;
use std::process::ExitCode;

/// A start reads and forgets many times what stays. The system's allocator would keep more than half of it: what stays lies
/// in between.
#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Two TLS providers in one program would panic at the first connection: this is the one.
    drop(rustls::crypto::ring::default_provider().install_default());
    match run::run(args::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::print_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
