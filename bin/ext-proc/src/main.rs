//! Command line of `rollora-ext-proc`.

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

/// Envoy external processor that rewrites the `model` of requests by the InferenceModelRewrites of a pool
#[derive(Debug, Parser)]
#[command(name = "rollora-ext-proc", version)]
struct Args {
    /// InferencePool whose rewrites are applied
    #[arg(long, value_name = "NAME")]
    pool: String,
    /// Namespace of the pool and its rewrites
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    namespace: String,
    /// Address to listen on
    #[arg(long, value_name = "IP", env = "POD_IP", default_value = "0.0.0.0")]
    address: IpAddr,
    /// Port of the external processor and the gRPC health service
    #[arg(long, value_name = "PORT", default_value_t = 9002)]
    grpc_port: u16,
    /// Second port of the gRPC health service, without TLS, for probes
    #[arg(long, value_name = "PORT", default_value_t = 9003)]
    grpc_health_port: u16,
    /// HTTP port of /rules, /metrics, /readyz and /livez
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    metrics_port: u16,
    /// Request paths that are closed to clients
    #[arg(long, value_enum, default_value_t = GuardArg::Administration)]
    guard: GuardArg,
    /// Maximum length of a request body in request_body_mode BUFFERED; in bytes, or with the unit KiB or MiB
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    max_body: usize,
    /// How the selected target is passed on
    #[arg(long, value_enum, default_value_t = RewriteArg::Body)]
    rewrite: RewriteArg,
    /// Set the model in the headers X-Gateway-Model-Name and X-Gateway-Base-Model-Name, by which the gateway chooses a
    /// route; requests wait until their model has arrived
    #[arg(long)]
    routing_headers: bool,
    /// Base model of the pool's servers, for X-Gateway-Base-Model-Name
    #[arg(long, value_name = "NAME", requires = "routing_headers")]
    base_model: Option<String>,
    /// Restore the requested model name in JSON responses and event streams, if Envoy's filter sends response bodies
    /// (response_body_mode FULL_DUPLEX_STREAMED, STREAMED or BUFFERED); such a response is cut off if this replica ends
    #[arg(long)]
    restore_model: bool,
    /// Maximum buffered size of one request until its model has arrived, for --routing-headers and --rewrite header
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_size)]
    max_hold: usize,
    /// Maximum buffered size of all requests together, including bodies in mode BUFFERED; requests that exceed it are
    /// not read until space is free
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    hold_budget: usize,
    /// Maximum time between two chunks while a part of a request is buffered; then the client gets status 408
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    hold_timeout: GatewayDuration,
    /// TLS certificate for --grpc-port, as PEM, reloaded when it changes; without it the port serves plaintext HTTP/2
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the TLS certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Time after SIGTERM in which new requests are still served, while Envoy switches to other replicas
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    drain_delay: GatewayDuration,
    /// Time after the drain delay in which open requests may end
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    drain_timeout: GatewayDuration,
    /// Format of the log; RUST_LOG sets its level
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GuardArg {
    /// No path is closed
    Off,
    /// Paths for loading and unloading adapters and other administration of a server
    Administration,
    /// All paths except the inference paths
    Strict,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RewriteArg {
    /// The `model` of the body is replaced
    Body,
    /// The body is unchanged, and x-llm-d-model-name-rewrite and x-gateway-model-name-rewrite name the target
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

/// Log filter if `RUST_LOG` is not set. kube's client logs an error for every retry during an outage; this program logs
/// each outage once.
const DEFAULT_LOG_FILTER: &str = "info,kube_client=off";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Fails only if a provider is installed already, which is then used.
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
    fn command_line_is_valid() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes_are_numbers_with_an_optional_unit() {
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
