//! `rollora-operator`: the operator of a cluster. One replica holds the Lease and works; the others stand by.

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

/// A start allocates and frees many times what it keeps. The kept allocations lie between the freed ones, so the
/// system's allocator would retain more than half of the freed memory.
#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // rustls panics at the first connection if two TLS providers are linked and none is installed.
    drop(rustls::crypto::ring::default_provider().install_default());
    match run::run(args::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::print_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
