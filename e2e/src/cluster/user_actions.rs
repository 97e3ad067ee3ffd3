//! What people do to a cluster with `kubectl`: delete, scale and apply.

use super::{ClusterEnvironment, EXT_PROC_DEPLOYMENT, VLLM_DEPLOYMENT};
use crate::harness::Harness;
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use rollora_testbed::{clock, deployments, manifests};
use serde_json::{Value, json};
use std::time::Instant;

impl ClusterEnvironment {
    /// A person deletes the pod of a server. Returns when the replacement answers: the moment at which the old server
    /// was dead.
    pub async fn delete_server(&mut self, index: usize) -> Result<Instant> {
        let name = self.servers[index].name();
        let old = self.kubelet.container(&name, "vllm").await?;
        let new = self.delete_and_wait_replacement(VLLM_DEPLOYMENT, &name).await?;
        self.wait_until("the deleted server has ended", |_| !old.is_running()).await?;
        let dead = clock::now();
        self.servers[index] = self.attach_server(&new).await?;
        self.servers[index].wait_ready().await?;
        Ok(dead)
    }

    /// A person deletes the pod of an ext-proc replica; returns when its replacement exists.
    pub async fn delete_ext_proc(&self, index: usize) -> Result<()> {
        let pods = deployments::active_pods(EXT_PROC_DEPLOYMENT, &self.watched_objects.pods);
        let name = pods.get(index).map(Pod::name_any).context("there is no such replica")?;
        self.delete_and_wait_replacement(EXT_PROC_DEPLOYMENT, &name).await.map(drop)
    }

    /// Deletes a pod of a Deployment, and returns the name of its replacement.
    async fn delete_and_wait_replacement(&self, deployment: &str, name: &str) -> Result<String> {
        let names = |environment: &Self| -> Vec<_> {
            deployments::active_pods(deployment, &environment.watched_objects.pods).iter().map(Pod::name_any).collect()
        };
        let before = names(self);
        self.pod_api().delete(name, &DeleteParams::default()).await?;
        self.wait_until("another pod takes the place of the deleted one", |environment| {
            let now = names(environment);
            now.len() == before.len() && !now.iter().any(|pod| pod == name)
        })
        .await?;
        names(self).into_iter().find(|pod| !before.contains(pod)).context("no new pod")
    }

    /// Sets the number of pods of a Deployment; does not wait for them.
    pub fn scale(&self, deployment: &str, replicas: usize) {
        self.watched_objects.deployments.scale(deployment, replicas);
    }

    /// Applies an object, in the environment's namespace.
    pub async fn apply(&self, mut object: Value) -> Result<()> {
        object["metadata"]["namespace"] = json!(self.namespace);
        manifests::apply(&self.client, &object).await
    }

    /// Writes an admin kubeconfig with this environment's namespace as the default, once, and returns its path.
    pub fn kubeconfig(&self) -> Result<std::path::PathBuf> {
        let path = self.folder.path().join("kubeconfig");
        if !path.is_file() {
            std::fs::copy(self.control_plane().admin_kubeconfig(), &path)?;
            let mut command = self.control_plane().kubectl()?;
            command.env("KUBECONFIG", &path);
            let set = command.args(["config", "set-context", "--current", "--namespace", &self.namespace]).output()?;
            ensure!(set.status.success(), "kubectl: {}", String::from_utf8_lossy(&set.stderr));
        }
        Ok(path)
    }

    fn pod_api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl Harness<ClusterEnvironment> {
    /// A person deletes the pod of a server while clients send; returns when its replacement answers.
    pub async fn delete_server(&mut self, index: usize) -> Result<()> {
        let from = clock::now();
        let dead = self.environment.delete_server(index).await?;
        self.record_server_outage(from, dead);
        Ok(())
    }
}
