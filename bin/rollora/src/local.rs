//! The command `rollora local`: logging, signals and exit.

use crate::runtime::{CliError, print_error};
use rollora_local::{LocalConfig, LocalError};
use std::io::{self, IsTerminal};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

pub(crate) async fn run(config: LocalConfig) -> Result<(), CliError> {
    init_logging();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let mut running = std::pin::pin!(rollora_local::run(config, stop.clone()));
    let result = tokio::select! {
        result = running.as_mut() => result,
        () = wait_for_signal(&mut terminate, &mut interrupt) => {
            print_error("rollora: stopping after responses in flight; send the signal again to stop immediately");
            stop.cancel();
            tokio::select! {
                result = running => result,
                () = wait_for_signal(&mut terminate, &mut interrupt) => Ok(()),
            }
        }
    };
    result.map_err(|error| match error {
        LocalError::Input(problems) => CliError::BadInput(problems),
        other => CliError::Other(other.to_string()),
    })
}

async fn wait_for_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Logs to standard error, at the level `info` or as `RUST_LOG` says.
fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = io::stderr().is_terminal() && !no_color;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(color)
        .with_target(false)
        .init();
}
