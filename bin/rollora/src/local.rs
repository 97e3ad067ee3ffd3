//! `rollora local`: the log, the signals, and how it ends.

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
    let ended = tokio::select! {
        ended = running.as_mut() => ended,
        () = wait_for_signal(&mut terminate, &mut interrupt) => {
            print_error("rollora: ending when the answers under way have ended; the same signal again ends at once");
            stop.cancel();
            tokio::select! {
                ended = running => ended,
                () = wait_for_signal(&mut terminate, &mut interrupt) => Ok(()),
            }
        }
    };
    ended.map_err(|error| match error {
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

/// Logs to standard error; `RUST_LOG` says how much.
fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = io::stderr().is_terminal() && !plain;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(color)
        .with_target(false)
        .init();
}
