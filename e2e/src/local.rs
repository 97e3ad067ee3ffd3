//! The environment on one machine: vLLM servers and one `rollora local`, with their files in a temporary folder.

use crate::{
    conditions::{ServerSnapshot, SystemSnapshot},
    harness::{Environment, Setup},
    rollora_local::{CommandOutput, LocalOverview, RolloraLocal},
    rule_recorder::RouterDiscovery,
};
use anyhow::{Context as _, Result};
use futures_util::future::{join_all, try_join_all};
use rollora_testbed::{http::ListenAddress, server::VllmServer};
use std::{fs, path::Path, sync::Arc};
use tempfile::TempDir;

/// One machine with its vLLM servers and one `rollora local`.
#[derive(Debug)]
pub struct LocalEnvironment {
    // The order in which they end: `rollora local` first, then the servers that it sends requests to, then the files.
    rollora_local: RolloraLocal,
    servers: Vec<VllmServer>,
    folder: TempDir,
}

impl LocalEnvironment {
    /// Starts the servers and writes the files; `rollora local` is not started yet.
    pub async fn prepare(setup: &Setup) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rollora-").tempdir().context("no temporary folder")?;
        let servers = setup.servers.iter().enumerate().map(|(index, kind)| {
            VllmServer::spawn(&format!("vllm-{}", index + 1), kind.clone(), setup.api_key.as_deref(), folder.path())
        });
        let servers: Vec<_> = servers.collect::<Result<_>>()?;
        let urls = servers.iter().map(VllmServer::url).collect();
        let rollora = RolloraLocal::new(folder.path(), urls, setup.api_key.as_deref())?;
        let environment = Self { rollora_local: rollora, servers, folder };
        write(&environment.rollora_local.rollout_file(), &setup.rollout.yaml())?;
        write(&environment.rollora_local.adapters_file(), &setup.adapters_yaml())?;
        try_join_all(environment.servers.iter().map(VllmServer::wait_ready)).await?;
        Ok(environment)
    }

    /// The `rollora local` process of this environment.
    pub fn rollora_local(&self) -> &RolloraLocal {
        &self.rollora_local
    }

    /// The same process, for scenarios that kill and start it.
    pub fn rollora_local_mut(&mut self) -> &mut RolloraLocal {
        &mut self.rollora_local
    }

    /// The temporary folder with all files of this environment.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Environment for LocalEnvironment {
    async fn start(setup: &Setup) -> Result<Self> {
        let mut environment = Self::prepare(setup).await?;
        environment.rollora_local.start().await?;
        Ok(environment)
    }

    fn gateway(&self) -> ListenAddress {
        self.rollora_local.gateway()
    }

    fn routers(&self) -> Vec<ListenAddress> {
        vec![self.rollora_local.status_address()]
    }

    fn router_discovery(&self) -> RouterDiscovery {
        let routers = self.routers();
        Arc::new(move || routers.clone())
    }

    fn servers(&self) -> &[VllmServer] {
        &self.servers
    }

    fn servers_mut(&mut self) -> &mut [VllmServer] {
        &mut self.servers
    }

    async fn adapters_yaml(&self) -> Result<String> {
        read(&self.rollora_local.adapters_file())
    }

    async fn write_adapters(&self, text: &str) -> Result<()> {
        write(&self.rollora_local.adapters_file(), text)
    }

    async fn compare_and_write_adapters(&self, _: &str, text: &str) -> Result<bool> {
        self.write_adapters(text).await.map(|()| true)
    }

    async fn rollout_yaml(&self) -> Result<String> {
        read(&self.rollora_local.rollout_file())
    }

    async fn write_rollout(&self, text: &str) -> Result<()> {
        write(&self.rollora_local.rollout_file(), text)
    }

    async fn snapshot(&self) -> SystemSnapshot {
        let (overview, adapters) =
            tokio::join!(self.rollora_local.overview(), join_all(self.servers.iter().map(VllmServer::loaded_adapters)));
        let overview = overview.map_err(|error| format!("{error:#}"));
        let server =
            |(server, adapters): (&VllmServer, Result<_>)| server_snapshot(server, adapters, overview.as_ref().ok());
        SystemSnapshot {
            servers: self.servers.iter().zip(adapters).map(server).collect(),
            adapters_file: read(&self.rollora_local.adapters_file()).unwrap_or_default(),
            file_problems: overview.as_ref().map(file_problems).unwrap_or_default(),
            routers: vec![overview.as_ref().map(|it| it.rules.clone()).map_err(Clone::clone)],
            status: overview.map(|overview| overview.rollout.status.unwrap_or_default()),
        }
    }

    async fn run_cli(&self, arguments: &[&str]) -> Result<CommandOutput> {
        self.rollora_local.run_cli(arguments).await
    }

    fn gateway_runs_in_operator(&self) -> bool {
        true
    }

    fn pilot_is_isolated(&self) -> bool {
        true
    }

    fn kill_operator(&mut self) {
        self.rollora_local.kill();
    }

    async fn start_operator(&mut self) -> Result<()> {
        self.rollora_local.start().await
    }

    fn logs(&self) -> String {
        let servers =
            self.servers.iter().enumerate().map(|(index, server)| {
                format!("log of vllm-{} ({}):\n{}", index + 1, server.name(), server.log_tail(10))
            });
        let rollora = format!("log of rollora local:\n{}", self.rollora_local.log_tail(60));
        std::iter::once(rollora).chain(servers).collect()
    }
}

fn server_snapshot(
    server: &VllmServer,
    adapters: Result<std::collections::BTreeSet<String>>,
    overview: Option<&LocalOverview>,
) -> ServerSnapshot {
    let name = server.name();
    let view = overview.and_then(|overview| overview.servers.iter().find(|view| view.name == name));
    ServerSnapshot {
        ready: view.is_some_and(|view| view.ready),
        adapters: adapters.map_err(|error| format!("{error:#}")),
        sidecar: view.map(|view| view.status.clone()),
        name,
    }
}

fn file_problems(overview: &LocalOverview) -> Vec<String> {
    let files = [&overview.rollout_file, &overview.adapters_file];
    files.iter().filter_map(|file| file.problem.clone()).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Truncates, then writes, as some editors do: the hardest case for a process that reads the file meanwhile.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
