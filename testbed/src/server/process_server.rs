//! A server that the testbed runs as a process, on a port that stays reserved while the server is down.

use super::{ServerKind, ServerSupervisor};
use crate::{ports::ReservedPort, process::ChildProcess};
use anyhow::Result;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub(super) struct ProcessServer {
    name: String,
    kind: ServerKind,
    port: ReservedPort,
    api_key: Option<String>,
    logs: PathBuf,
    process: Option<ChildProcess>,
}

impl ProcessServer {
    pub(super) fn start(name: &str, kind: ServerKind, api_key: Option<&str>, logs: &Path) -> Result<Self> {
        let (name, api_key) = (name.to_owned(), api_key.map(str::to_owned));
        let mut server =
            Self { name, kind, port: ReservedPort::reserve()?, api_key, logs: logs.to_owned(), process: None };
        ServerSupervisor::start(&mut server)?;
        Ok(server)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.port.address()
    }
}

impl ServerSupervisor for ProcessServer {
    fn start(&mut self) -> Result<()> {
        self.kill();
        let mut command = self.kind.command()?;
        command.args(["--host", "127.0.0.1", "--port", &self.port.number().to_string()]);
        if let Some(key) = &self.api_key {
            command.args(["--api-key", key]);
        }
        let process = ChildProcess::start(&self.name, command, &self.logs)?;
        self.process = Some(process.with_termination_grace(self.kind.termination_grace()));
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    fn set_kind(&mut self, kind: ServerKind) {
        self.kind = kind;
    }

    fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.exit_reason().is_none())
    }

    fn exit_reason(&self) -> Option<String> {
        self.process.as_ref().and_then(ChildProcess::exit_reason).map(|exit| format!("{exit:?}"))
    }

    fn log_tail(&self, lines: usize) -> String {
        crate::process::log_tail(&self.logs.join(format!("{}.log", self.name)), lines)
    }
}
