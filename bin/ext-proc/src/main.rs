//! `rollora-ext-proc`: what was typed, and what it means.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use rollora_api::duration::GatewayDuration;
use rollora_ext_proc::{CertificateFiles, ProgramOptions, RewriteMode, RewriteOptions, ServerSettings, run};
use rollora_router::{guard::PathGuard, headers::encode_header_value};
use std::{
    io::{self, IsTerminal as _},
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;

/// Rewrites the `model` of requests behind Envoy's ext_proc filter, as the InferenceModelRewrites of a pool say.
#[derive(Debug, Parser)]
#[command(name = "rollora-ext-proc", version)]
struct Args {
    /// The InferencePool whose rewrites count
    #[arg(long, value_name = "NAME")]
    pool: String,
    /// The namespace of the pool and its rewrites
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    namespace: String,
    /// The address to listen on
    #[arg(long, value_name = "IP", env = "POD_IP", default_value = "0.0.0.0")]
    address: IpAddr,
    /// The port of the external processor and of the gRPC health service
    #[arg(long, value_name = "PORT", default_value_t = 9002)]
    grpc_port: u16,
    /// A second port of the gRPC health service, for probes
    #[arg(long, value_name = "PORT", default_value_t = 9003)]
    grpc_health_port: u16,
    /// The port of /rules, /metrics, /readyz and /livez
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    metrics_port: u16,
    /// Which paths are closed to clients
    #[arg(long, value_enum, default_value_t = GuardArg::Administration)]
    guard: GuardArg,
    /// The longest request body that is taken as a whole, which is what request_body_mode BUFFERED asks for; a number
    /// of bytes, with KiB or MiB behind it or not
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    max_body: usize,
    /// How whoever comes behind learns which target a rule chose
    #[arg(long, value_enum, default_value_t = RewriteArg::Body)]
    rewrite: RewriteArg,
    /// Tell the model in the headers X-Gateway-Model-Name and X-Gateway-Base-Model-Name, by which the gateway chooses a
    /// route; the request waits until its model has come
    #[arg(long)]
    routing_headers: bool,
    /// The base model of the pool's servers, for X-Gateway-Base-Model-Name
    #[arg(long, value_name = "NAME", requires = "routing_headers")]
    base_model: Option<String>,
    /// Put the client's name back into JSON answers and event streams, where the filter shows response bodies
    /// (response_body_mode FULL_DUPLEX_STREAMED, STREAMED or BUFFERED); an answer then ends with the replica that reads it
    #[arg(long)]
    restore_model: bool,
    /// The most that is held of one request until its model has come, which --routing-headers and --rewrite header ask
    /// for
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_size)]
    max_hold: usize,
    /// The most that is held of all requests together, those that come as a whole (BUFFERED) among them; who finds no
    /// room waits
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    hold_budget: usize,
    /// How long a part of a request is held until more of it comes; then its client gets 408
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    hold_timeout: GatewayDuration,
    /// The certificate with which it speaks TLS on --grpc-port, as PEM, read again when it is renewed; without it, it
    /// speaks HTTP/2 in the clear
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// For how long new requests are still served after SIGTERM, until nobody sends them any more
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    drain_delay: GatewayDuration,
    /// How long requests that have begun may take to end after that
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    drain_timeout: GatewayDuration,
    /// How the log is written; what is in it is set by RUST_LOG
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GuardArg {
    /// None
    Off,
    /// Those that load and unload adapters, and what else administrates a server
    Administration,
    /// All but those of inference
    Strict,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RewriteArg {
    /// The `model` of the body is replaced
    Body,
    /// The body stays, and x-llm-d-model-name-rewrite and x-gateway-model-name-rewrite name the target
    Header,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit = match text.strip_prefix(digits) {
        Some("") => Some(1),
        Some("KiB") => Some(1024),
        Some("MiB") => Some(1024 * 1024),
        _ => None,
    };
    let size = unit.and_then(|unit: usize| digits.parse::<usize>().ok()?.checked_mul(unit)).filter(|size| *size > 0);
    size.ok_or_else(|| "not a size: write one like 64MiB, 512KiB or 1048576".to_owned())
}

impl From<Args> for ProgramOptions {
    fn from(arguments: Args) -> Self {
        Self {
            pool: arguments.pool,
            namespace: arguments.namespace,
            address: arguments.address,
            grpc_port: arguments.grpc_port,
            health_port: arguments.grpc_health_port,
            metrics_port: arguments.metrics_port,
            tls: arguments
                .tls_cert
                .zip(arguments.tls_key)
                .map(|(certificate, key)| CertificateFiles { certificate, key }),
            settings: ServerSettings {
                guard: match arguments.guard {
                    GuardArg::Off => PathGuard::Off,
                    GuardArg::Administration => PathGuard::Administration,
                    GuardArg::Strict => PathGuard::Strict,
                },
                rewrite: RewriteOptions {
                    mode: match arguments.rewrite {
                        RewriteArg::Body => RewriteMode::Body,
                        RewriteArg::Header => RewriteMode::Header,
                    },
                    routing_headers: arguments.routing_headers,
                    restore_model: arguments.restore_model,
                    base_model: arguments.base_model.as_deref().map(encode_header_value),
                },
                buffer_limit: arguments.max_hold,
                buffer_budget: arguments.hold_budget,
                buffer_timeout: arguments.hold_timeout.get(),
                max_body: arguments.max_body,
                drain_delay: arguments.drain_delay.get(),
                drain_timeout: arguments.drain_timeout.get(),
            },
        }
    }
}

/// What is logged where `RUST_LOG` says nothing. kube's client calls an outage an error at every try; here it is said
/// once, in words.
const DEFAULT_LOG_FILTER: &str = "info,kube_client=off";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Fails only where there is a provider already, which is then this one.
    rustls::crypto::ring::default_provider().install_default().ok();
    let arguments = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG_FILTER));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = io::stderr().is_terminal() && !plain;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(color).init(),
        LogFormat::Json => log.with_ansi(false).json().flatten_event(true).init(),
    }
    match run(arguments.into()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_size_is_a_number_with_a_unit_or_without() {
        for (text, expected) in [
            ("64MiB", Some(64 << 20)),
            ("512KiB", Some(512 << 10)),
            ("1048576", Some(1 << 20)),
            ("0", None),
            ("-1", None),
            ("MiB", None),
            ("1GB", None),
            ("18446744073709551615KiB", None),
        ] {
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        }
    }
}
