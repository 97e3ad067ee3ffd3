//! Developer and CI commands; `cargo xtask help` lists them.
//!
//! Each command is a module. Shared modules: [`process`] runs child processes, [`workspace`] locates the repository and
//! runs cargo in it, [`tools`] is the cache of external tools.
#![expect(clippy::print_stdout, reason = "a command-line tool writes its results to standard output")]

use std::process::ExitCode;

use crate::args::XtaskCommand;
use crate::process::Interrupted;

mod args;
mod bench;
mod clock;
mod crds;
mod demo;
mod fuzz;
mod process;
mod procfs;
mod test;
mod tools;
mod workspace;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        // The exit code that shells use after Ctrl-C.
        Err(error) if error.is::<Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    process::catch_signals()?;
    match args::parse(std::env::args_os().skip(1))? {
        XtaskCommand::Help(verb) => {
            print!("{}", args::help(verb.as_deref()));
            Ok(ExitCode::SUCCESS)
        }
        XtaskCommand::Demo(command) => demo::run(&command),
        XtaskCommand::Test { scope, parts } => test::run(scope, &parts),
        XtaskCommand::Bench { names, json, short } => bench::run(&names, json, short),
        XtaskCommand::Fuzz { targets, seconds } => fuzz::run(&targets, seconds).map(|()| ExitCode::SUCCESS),
        XtaskCommand::Crds { mode } => crds::run(mode).map(|()| ExitCode::SUCCESS),
        XtaskCommand::Tools(command) => tools::run(&command).map(|()| ExitCode::SUCCESS),
    }
}
