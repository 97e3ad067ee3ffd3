//! [`Environment`] on the parts of a cluster.

use super::{ClusterEnvironment, ClusterOptions, USER_CONFIG_KEY, diagnostics, observe::user_config};
use crate::{
    conditions::SystemSnapshot,
    harness::{Environment, Setup},
    rollora_local::{CommandOutput, run_command},
    rule_recorder::RouterDiscovery,
};
use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use rollora_testbed::{
    clock, control_plane::AuditEvent, guide::ADAPTERS_CONFIG_MAP, http::ListenAddress, kubelet::ContainerHandle, pods,
    process::built_program, server::VllmServer,
};
use serde_json::json;
use std::{
    process::Command,
    sync::{Arc, PoisonError},
    time::Instant,
};

impl ClusterEnvironment {
    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl Environment for ClusterEnvironment {
    async fn start(setup: &Setup) -> Result<Self> {
        Self::start_with(setup, ClusterOptions::default()).await
    }

    fn gateway(&self) -> ListenAddress {
        self.gateway.address()
    }

    fn routers(&self) -> Vec<ListenAddress> {
        self.watched_objects.routers(pods::is_active)
    }

    fn router_discovery(&self) -> RouterDiscovery {
        // A terminating pod still serves the requests that it has accepted.
        let watched = Arc::clone(&self.watched_objects);
        Arc::new(move || watched.routers(|_| true))
    }

    fn servers(&self) -> &[VllmServer] {
        &self.servers
    }

    fn servers_mut(&mut self) -> &mut [VllmServer] {
        &mut self.servers
    }

    async fn adapters_yaml(&self) -> Result<String> {
        user_config(&self.config_maps().get(ADAPTERS_CONFIG_MAP).await?)
    }

    async fn write_adapters(&self, text: &str) -> Result<()> {
        let patch = Patch::Merge(json!({ "data": { USER_CONFIG_KEY: text } }));
        self.config_maps().patch(ADAPTERS_CONFIG_MAP, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn compare_and_write_adapters(&self, before: &str, text: &str) -> Result<bool> {
        let mut map = self.config_maps().get(ADAPTERS_CONFIG_MAP).await?;
        if user_config(&map)? != before {
            return Ok(false);
        }
        map.data.get_or_insert_default().insert(USER_CONFIG_KEY.to_owned(), text.to_owned());
        match self.config_maps().replace(ADAPTERS_CONFIG_MAP, &PostParams::default(), &map).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn rollout_yaml(&self) -> Result<String> {
        Ok(self.rollout_yaml.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn write_rollout(&self, text: &str) -> Result<()> {
        self.apply(serde_saphyr::from_str(text)?).await?;
        text.clone_into(&mut self.rollout_yaml.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    async fn snapshot(&self) -> SystemSnapshot {
        self.take_snapshot().await
    }

    async fn run_cli(&self, arguments: &[&str]) -> Result<CommandOutput> {
        let mut command = Command::new(built_program("rollora")?);
        command.args(arguments).args(["-n", &self.namespace]);
        command.env("KUBECONFIG", self.kubeconfig()?).env("NO_COLOR", "1");
        // A current folder with a state folder would select `rollora local`.
        command.current_dir(self.folder.path());
        run_command(command).await
    }

    fn gateway_runs_in_operator(&self) -> bool {
        false
    }

    fn pilot_is_isolated(&self) -> bool {
        false
    }

    /// Reads the API server's audit log. An event has the time at which the request was received, which is before it
    /// was written.
    fn rewrite_write_times(&self) -> Result<Vec<Instant>> {
        let (now, timestamp) = (clock::now(), clock::timestamp());
        let is_write = |event: &AuditEvent| {
            let writes = matches!(event.verb.as_str(), "create" | "update" | "patch") && event.code < 300;
            let is_rewrite = event.resource == "inferencemodelrewrites" && event.subresource.is_empty();
            writes && is_rewrite && event.namespace == self.namespace
        };
        let at = |event: &AuditEvent| now.checked_sub(timestamp.duration_since(event.received_at).unsigned_abs());
        Ok(self.audit.events()?.iter().filter(|event| is_write(event)).filter_map(at).collect())
    }

    fn kill_operator(&mut self) {
        self.operators().iter().for_each(ContainerHandle::kill_and_hold);
    }

    async fn start_operator(&mut self) -> Result<()> {
        let operators = self.operators();
        operators.iter().for_each(ContainerHandle::release);
        self.wait_until("the operator runs", |_| operators.iter().all(ContainerHandle::is_running)).await
    }

    fn logs(&self) -> String {
        diagnostics::logs(self)
    }

    async fn describe_objects(&self) -> String {
        diagnostics::describe_objects(self).await
    }
}
