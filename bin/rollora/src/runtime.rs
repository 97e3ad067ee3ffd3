//! Where the program meets its world: the runtime, the terminal, the clock, how it ends.

use crate::{
    client::{RolloutClient, RolloutClientError},
    command::Command,
    intent, local, show,
};
use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

/// Why the program ends without having done what it was asked.
#[derive(Debug)]
pub(crate) enum CliError {
    /// What was given cannot be used; a problem a line.
    BadInput(Vec<String>),
    /// Whoever is meant could not be asked.
    Client(RolloutClientError),
    /// It was asked and said no.
    Refused(String),
    /// Anything else.
    Other(String),
}

impl CliError {
    /// Says why, and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (lines, code) = match self {
            Self::BadInput(problems) => (problems, 2),
            Self::Client(error) => (vec![error.to_string()], 1),
            Self::Refused(reason) | Self::Other(reason) => (vec![reason], 1),
        };
        for line in lines {
            print_error(&format!("rollora: {line}"));
        }
        ExitCode::from(code)
    }
}

impl From<RolloutClientError> for CliError {
    fn from(error: RolloutClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Does what was asked. One thread is enough: the work is waiting, and the servers behind it are the ones that compute.
pub(crate) fn run(command: Command) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        match command {
            Command::Local(config) => local::run(*config).await,
            Command::Show { rollout: target, mode: what } => {
                show::run(&RolloutClient::connect(target).await?, what).await
            }
            Command::Intent { rollout: target, kind: verb } => {
                intent::run(&RolloutClient::connect(target).await?, verb).await
            }
        }
    });
    // A disk that does not answer must not keep the process from ending.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

/// Writes to standard output. A reader that went away (`rollora status | head`) is no mistake.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error.
pub(crate) fn print_error(line: &str) {
    // Where even that fails there is nobody left to tell.
    drop(writeln!(io::stderr().lock(), "{line}"));
}

/// Now.
#[expect(clippy::disallowed_methods, reason = "the shell's one clock function")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// What standard output can show.
pub(crate) fn detect_terminal() -> Terminal {
    let tty = io::stdout().is_terminal();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Terminal { tty, color: tty && !plain }
}

/// What standard output can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Whether it is a terminal, where a screen can be drawn over.
    pub(crate) tty: bool,
    /// Whether colors are wanted.
    pub(crate) color: bool,
}
