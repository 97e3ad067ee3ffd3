//! Runs a simulated vLLM server as a process: see `rollora_testbed::sim`.
//!
//! When the server answers, the program writes one line to standard output: its URL. The exit code is 0 after SIGTERM,
//! SIGINT or the end of standard input (`--until-stdin-closes`), and 1 if the server crashed or could not start.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use rollora_testbed::sim::{AllowedSources, CrashMode, Knobs, LoadFault, Simulator, SimulatorConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Simulated vLLM server that serves LoRA adapters: responds as vLLM 0.32.0 does, runs no inference, needs no model.
///
/// Prints its URL when it is ready. While it runs, its knobs can be changed and its counters read under /sim:
/// GET and PATCH /sim/knobs, GET and DELETE /sim/requests, GET /sim/log, POST /sim/crash.
#[derive(Debug, Parser)]
#[command(name = "vllm-sim", version, args_override_self = true)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct Arguments {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 picks a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Name of the base model.
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    served_model_name: String,
    /// Root of the base model that /v1/models reports.
    #[arg(long, value_name = "PATH", default_value = "tiny/base")]
    model: String,
    /// Maximum length of prompt and completion together, in tokens (a token is three characters).
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    max_model_len: usize,
    /// Maximum number of adapters in one batch; only reported in the metrics, not enforced.
    #[arg(long, value_name = "N", default_value_t = 2)]
    max_loras: usize,
    /// Maximum number of adapters that the worker caches; an evicted adapter is read again from its folder.
    #[arg(long, value_name = "N", default_value_t = 4)]
    max_cpu_loras: usize,
    /// Maximum rank of an adapter.
    #[arg(long, value_name = "RANK", default_value_t = 16)]
    max_lora_rank: u64,
    /// Adapter that is loaded from the start; can be given several times.
    #[arg(long, value_name = "NAME=SOURCE", value_parser = parse_pair::<String>)]
    lora_modules: Vec<(String, String)>,
    /// Behave as vLLM without --enable-lora.
    #[arg(long)]
    no_lora: bool,
    /// Behave as vLLM without VLLM_ALLOW_RUNTIME_LORA_UPDATING=True: adapters can be neither loaded nor unloaded.
    #[arg(long)]
    no_runtime_updating: bool,
    /// Accept any adapter source, as if a model hub had it, unless the source begins with /nonexistent. Without this
    /// flag a source must be a folder on this machine.
    #[arg(long)]
    any_source: bool,
    /// Number of adapters that can load concurrently; vLLM loads one after the other.
    #[arg(long, value_name = "N", default_value_t = 1)]
    parallel_loads: usize,
    /// API key that requests to /v1/* must carry.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Time that loading an adapter takes.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    load_millis: u64,
    /// Time that generating a token takes.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    token_millis: u64,
    /// Adapter that fails to load, and how: not-found, bad-weights, rank, 500 or 500:TEXT. Can be given several times.
    #[arg(long, value_name = "ID=FAULT", value_parser = parse_pair::<LoadFault>)]
    fail_load: Vec<(String, LoadFault)>,
    /// Adapter whose load crashes the server: with ID or ID=engine the load returns status 500 first, with ID=cut the
    /// connection is cut without a response. Can be given several times.
    #[arg(long, value_name = "ID[=DEATH]", value_parser = parse_crash)]
    deadly_load: Vec<(String, CrashMode)>,
    /// Adapter whose first use crashes the server; same values as --deadly-load.
    #[arg(long, value_name = "ID[=DEATH]", value_parser = parse_crash)]
    deadly_use: Vec<(String, CrashMode)>,
    /// Exit when standard input closes, so that the server does not outlive the program that started it.
    #[arg(long)]
    until_stdin_closes: bool,
}

impl Arguments {
    fn into_config(self) -> SimulatorConfig {
        SimulatorConfig {
            host: self.host,
            port: self.port,
            served_model_name: self.served_model_name,
            model: self.model,
            max_model_len: self.max_model_len,
            enable_lora: !self.no_lora,
            runtime_updating: !self.no_runtime_updating,
            max_loras: self.max_loras,
            max_cpu_loras: self.max_cpu_loras,
            max_lora_rank: self.max_lora_rank,
            lora_modules: self.lora_modules,
            working_dir: PathBuf::from("."),
            sources: if self.any_source { AllowedSources::Any } else { AllowedSources::OnDisk },
            parallel_loads: self.parallel_loads,
            knobs: Knobs {
                load_millis: self.load_millis,
                token_millis: self.token_millis,
                fail_load: BTreeMap::from_iter(self.fail_load),
                deadly_load: BTreeMap::from_iter(self.deadly_load),
                deadly_use: BTreeMap::from_iter(self.deadly_use),
                api_key: self.api_key,
                ..Knobs::default()
            },
        }
    }
}

fn parse_pair<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(String, T), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.parse().map_err(|error: T::Err| error.to_string())?))
}

fn parse_crash(text: &str) -> Result<(String, CrashMode), String> {
    if text.contains('=') { parse_pair(text) } else { Ok((text.to_owned(), CrashMode::default())) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            // If standard error is closed too, there is no way left to report the error.
            let _unreported = writeln!(io::stderr(), "vllm-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let parent_gone = CancellationToken::new();
    if arguments.until_stdin_closes {
        cancel_when_stdin_closes(parent_gone.clone());
    }
    let mut simulator = Simulator::start(arguments.into_config()).await?;
    writeln!(io::stdout(), "{}", simulator.url())?;
    tokio::select! {
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        () = parent_gone.cancelled() => Ok(ExitCode::SUCCESS),
        reason = simulator.wait_exit() => {
            writeln!(io::stderr(), "vllm-sim: {reason}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Reads on a thread of its own, because reading standard input blocks; the thread dies with the process.
fn cancel_when_stdin_closes(token: CancellationToken) {
    thread::spawn(move || {
        let mut ignored = [0; 64];
        while matches!(io::stdin().read(&mut ignored), Ok(1..)) {}
        token.cancel();
    });
}
