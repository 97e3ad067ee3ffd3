//! The bed on one machine: vLLM servers and one `rollora local`, with their files in a temporary folder.

use crate::{
    bed::{Place, Setup},
    rollora::{Overview, Rollora, Spoken},
    rules::Routers,
    seen::{Seen, ServerSeen},
};
use anyhow::{Context as _, Result};
use futures_util::future::{join_all, try_join_all};
use rollora_testbed::{http::ListenAddress, server::VllmServer};
use std::{fs, path::Path, sync::Arc};
use tempfile::TempDir;

/// One machine.
#[derive(Debug)]
pub struct Machine {
    // In this order they end: first who asks, then who answers, then the files.
    rollora: Rollora,
    servers: Vec<VllmServer>,
    folder: TempDir,
}

impl Machine {
    /// Starts the servers and writes the files; `rollora local` is not started yet.
    pub async fn prepare(setup: &Setup) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rollora-").tempdir().context("no temporary folder")?;
        let servers = setup.servers.iter().enumerate().map(|(index, kind)| {
            VllmServer::spawn(&format!("vllm-{}", index + 1), kind.clone(), setup.api_key.as_deref(), folder.path())
        });
        let servers: Vec<_> = servers.collect::<Result<_>>()?;
        let urls = servers.iter().map(VllmServer::url).collect();
        let rollora = Rollora::new(folder.path(), urls, setup.api_key.as_deref())?;
        let machine = Self { rollora, servers, folder };
        write(&machine.rollora.rollout_file(), &setup.rollout.yaml())?;
        write(&machine.rollora.adapters_file(), &setup.adapters_yaml())?;
        try_join_all(machine.servers.iter().map(VllmServer::wait_ready)).await?;
        Ok(machine)
    }

    /// `rollora local`.
    pub fn rollora(&self) -> &Rollora {
        &self.rollora
    }

    /// `rollora local`, to be killed and started.
    pub fn rollora_mut(&mut self) -> &mut Rollora {
        &mut self.rollora
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Place for Machine {
    async fn start(setup: &Setup) -> Result<Self> {
        let mut machine = Self::prepare(setup).await?;
        machine.rollora.start().await?;
        Ok(machine)
    }

    fn gateway(&self) -> ListenAddress {
        self.rollora.gateway()
    }

    fn routers(&self) -> Vec<ListenAddress> {
        vec![self.rollora.status()]
    }

    fn routers_over_time(&self) -> Routers {
        let routers = self.routers();
        Arc::new(move || routers.clone())
    }

    fn servers(&self) -> &[VllmServer] {
        &self.servers
    }

    fn servers_mut(&mut self) -> &mut [VllmServer] {
        &mut self.servers
    }

    async fn adapters_file(&self) -> Result<String> {
        read(&self.rollora.adapters_file())
    }

    async fn write_adapters(&self, text: &str) -> Result<()> {
        write(&self.rollora.adapters_file(), text)
    }

    async fn replace_adapters(&self, _: &str, text: &str) -> Result<bool> {
        self.write_adapters(text).await.map(|()| true)
    }

    async fn rollout_file(&self) -> Result<String> {
        read(&self.rollora.rollout_file())
    }

    async fn write_rollout(&self, text: &str) -> Result<()> {
        write(&self.rollora.rollout_file(), text)
    }

    async fn look(&self) -> Seen {
        let (overview, adapters) =
            tokio::join!(self.rollora.overview(), join_all(self.servers.iter().map(VllmServer::loaded_adapters)));
        let overview = overview.map_err(|error| format!("{error:#}"));
        let server =
            |(server, adapters): (&VllmServer, Result<_>)| server_seen(server, adapters, overview.as_ref().ok());
        Seen {
            servers: self.servers.iter().zip(adapters).map(server).collect(),
            adapters_file: read(&self.rollora.adapters_file()).unwrap_or_default(),
            file_problems: overview.as_ref().map(problems).unwrap_or_default(),
            routers: vec![overview.as_ref().map(|it| it.rules.clone()).map_err(Clone::clone)],
            status: overview.map(|overview| overview.rollout.status.unwrap_or_default()),
        }
    }

    async fn say(&self, arguments: &[&str]) -> Result<Spoken> {
        self.rollora.say(arguments).await
    }

    fn gateway_is_in_operator(&self) -> bool {
        true
    }

    fn pilots_are_quiet(&self) -> bool {
        true
    }

    fn kill_operator(&mut self) {
        self.rollora.kill();
    }

    async fn start_operator(&mut self) -> Result<()> {
        self.rollora.start().await
    }

    fn logs(&self) -> String {
        let servers =
            self.servers.iter().enumerate().map(|(index, server)| {
                format!("log of vllm-{} ({}):\n{}", index + 1, server.name(), server.log_tail(10))
            });
        let rollora = format!("log of rollora local:\n{}", self.rollora.log_tail(60));
        std::iter::once(rollora).chain(servers).collect()
    }
}

fn server_seen(
    server: &VllmServer,
    adapters: Result<std::collections::BTreeSet<String>>,
    overview: Option<&Overview>,
) -> ServerSeen {
    let name = server.name();
    let view = overview.and_then(|overview| overview.servers.iter().find(|view| view.name == name));
    ServerSeen {
        ready: view.is_some_and(|view| view.ready),
        adapters: adapters.map_err(|error| format!("{error:#}")),
        sidecar: view.map(|view| view.status.clone()),
        name,
    }
}

fn problems(overview: &Overview) -> Vec<String> {
    let files = [&overview.rollout_file, &overview.adapters_file];
    files.iter().filter_map(|file| file.problem.clone()).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// As an editor does that truncates and writes: the hardest way for whoever reads along.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
