//! A server that the bed itself starts, as a process on a port that stays its own while it is dead.

use super::{Keeper, Kind};
use crate::{ports::Port, process::Process};
use anyhow::Result;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub(super) struct Own {
    name: String,
    kind: Kind,
    port: Port,
    api_key: Option<String>,
    logs: PathBuf,
    process: Option<Process>,
}

impl Own {
    pub(super) fn start(name: &str, kind: Kind, api_key: Option<&str>, logs: &Path) -> Result<Self> {
        let (name, api_key) = (name.to_owned(), api_key.map(str::to_owned));
        let mut own = Self { name, kind, port: Port::reserve()?, api_key, logs: logs.to_owned(), process: None };
        Keeper::start(&mut own)?;
        Ok(own)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.port.address()
    }
}

impl Keeper for Own {
    fn start(&mut self) -> Result<()> {
        self.kill();
        let mut command = self.kind.command()?;
        command.args(["--host", "127.0.0.1", "--port", &self.port.number().to_string()]);
        if let Some(key) = &self.api_key {
            command.args(["--api-key", key]);
        }
        let process = Process::start(&self.name, command, &self.logs)?;
        self.process = Some(process.with_farewell(self.kind.farewell()));
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    fn become_kind(&mut self, kind: Kind) {
        self.kind = kind;
    }

    fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.ended().is_none())
    }

    fn ended(&self) -> Option<String> {
        self.process.as_ref().and_then(Process::ended).map(|ending| format!("{ending:?}"))
    }

    fn log_tail(&self, lines: usize) -> String {
        crate::process::tail(&self.logs.join(format!("{}.log", self.name)), lines)
    }
}
