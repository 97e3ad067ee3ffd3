//! The edges of the program: async runtime, terminal, clock and exit code.

use crate::{
    client::{RolloutClient, RolloutClientError},
    command::Command,
    intent, local, show,
};
use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

/// Error that ends the program.
#[derive(Debug)]
pub(crate) enum CliError {
    /// Invalid options or input files, one problem per line; the exit code is 2.
    BadInput(Vec<String>),
    /// The Rollout could not be accessed.
    Client(RolloutClientError),
    /// The request was refused.
    Refused(String),
    /// Any other error, as text.
    Other(String),
}

impl CliError {
    /// Prints the error to standard error, and returns the exit code.
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

/// Executes a command. One thread is enough: the program mostly waits for I/O, and the vLLM servers do the computing.
pub(crate) fn run(command: Command) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match command {
            Command::Local(config) => local::run(*config).await,
            Command::Show { rollout, mode } => show::run(&RolloutClient::connect(rollout).await?, mode).await,
            Command::Intent { rollout, kind } => intent::run(&RolloutClient::connect(rollout).await?, kind).await,
        }
    });
    // A blocking task that waits for a disk must not keep the process from exiting.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

/// Writes to standard output. A closed pipe (`rollora status | head`) is not an error.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error.
pub(crate) fn print_error(line: &str) {
    // There is no other place to report an error of standard error.
    drop(writeln!(io::stderr().lock(), "{line}"));
}

#[expect(clippy::disallowed_methods, reason = "the shell's one clock function")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

pub(crate) fn detect_terminal() -> Terminal {
    let tty = io::stdout().is_terminal();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Terminal { tty, color: tty && !no_color }
}

/// Capabilities of standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Whether it is a terminal, so that a screen can be redrawn in place.
    pub(crate) tty: bool,
    /// Whether to use colors.
    pub(crate) color: bool,
}
