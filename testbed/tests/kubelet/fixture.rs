//! A namespace with a kubelet stand-in, and functions for its pods.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use rollora_testbed::{
    control_plane::ControlPlane,
    kubelet::{ImagePrograms, Kubelet, KubeletOptions, RestartBackoff},
    process::built_program,
};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const WAIT_TIMEOUT: Duration = Duration::from_mins(2);

pub(crate) struct KubeletFixture {
    // Fields are dropped in this order.
    pub(crate) kubelet: Kubelet,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    folder: TempDir,
}

impl KubeletFixture {
    pub(crate) async fn new() -> Result<Self> {
        Self::with_options(|_| {}).await
    }

    pub(crate) async fn with_options(change: impl FnOnce(&mut KubeletOptions)) -> Result<Self> {
        let plane = ControlPlane::shared().await?;
        let namespace = plane.create_namespace("kubelet").await?;
        let client = plane.admin_client().await?;
        let folder = tempfile::tempdir()?;
        let programs = ImagePrograms::new().with_program("vllm-sim", &built_program("vllm-sim")?);
        let mut options = KubeletOptions::new(plane, &namespace, programs, folder.path().to_owned()).await?;
        options.backoff = RestartBackoff { initial: Duration::from_millis(600), max: Duration::from_secs(5) };
        change(&mut options);
        let kubelet = Kubelet::start(options)?;
        Ok(Self { kubelet, client, namespace, folder })
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a pod without a service account.
    pub(crate) async fn create_pod(&self, name: &str, spec: Value) -> Result<Pod> {
        let mut spec = spec;
        spec["nodeName"] = json!("testbed");
        if spec["serviceAccountName"].is_null() {
            spec["automountServiceAccountToken"] = json!(false);
        }
        let pod = json!({ "metadata": { "name": name, "labels": { "app": "a-label" } }, "spec": spec });
        Ok(self.pods().create(&PostParams::default(), &serde_json::from_value(pod)?).await?)
    }

    /// Creates a pod with one container that runs a script.
    pub(crate) async fn create_shell_pod(&self, name: &str, script: &str) -> Result<Pod> {
        self.create_pod(name, json!({ "containers": [shell_container("main", script)] })).await
    }

    pub(crate) async fn apply_config_map(&self, name: &str, data: Value) -> Result<()> {
        let map: ConfigMap = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data,
        }))?;
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        maps.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(map)).await?;
        Ok(())
    }

    pub(crate) async fn create_service_account(&self, name: &str) -> Result<()> {
        let account: ServiceAccount = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        let accounts = Api::namespaced(self.client.clone(), &self.namespace);
        accounts.create(&PostParams::default(), &account).await?;
        Ok(())
    }

    pub(crate) async fn delete_pod(&self, name: &str, grace: u32) -> Result<()> {
        self.pods().delete(name, &DeleteParams::default().grace_period(grace)).await?;
        Ok(())
    }

    /// Waits until the pod satisfies `holds`; an error with its status after 20 seconds.
    pub(crate) async fn wait_for_pod(&self, name: &str, what: &str, holds: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let start = now();
        loop {
            let pod = self.pods().get(name).await?;
            if holds(&pod) {
                return Ok(pod);
            }
            ensure!(
                start.elapsed() < WAIT_TIMEOUT,
                "pod {name}: {what} not observed: {}",
                serde_json::to_string(&pod.status)?
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the pod's object is gone.
    pub(crate) async fn wait_for_pod_deletion(&self, name: &str) -> Result<()> {
        let start = now();
        while let Some(pod) = self.pods().get_opt(name).await? {
            ensure!(start.elapsed() < WAIT_TIMEOUT, "pod {name} still exists: {}", serde_json::to_string(&pod)?);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until the kubelet has removed a container, which happens shortly after its pod's object is gone.
    pub(crate) async fn wait_for_container_removal(&self, pod: &str, container: &str) -> Result<()> {
        let start = now();
        while self.kubelet.find_container(pod, container).is_some() {
            ensure!(start.elapsed() < WAIT_TIMEOUT, "the kubelet still has container {container} of {pod}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Waits until the output of a container contains `wanted`, and returns the whole output.
    pub(crate) async fn wait_for_log(&self, pod: &str, container: &str, wanted: &str) -> Result<String> {
        let container = self.kubelet.container(pod, container).await?;
        let start = now();
        loop {
            let log = container.log();
            if log.contains(wanted) {
                return Ok(log);
            }
            ensure!(start.elapsed() < WAIT_TIMEOUT, "the output does not contain {wanted:?}:\n{log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns reason and note of all events so far.
    pub(crate) async fn list_events(&self) -> Result<Vec<String>> {
        let events = Api::<k8s_openapi::api::events::v1::Event>::namespaced(self.client.clone(), &self.namespace);
        let text = |event: k8s_openapi::api::events::v1::Event| {
            format!("{}: {}", event.reason.unwrap_or_default(), event.note.unwrap_or_default())
        };
        Ok(events.list(&ListParams::default()).await?.into_iter().map(text).collect())
    }

    /// Waits until an event contains all of these words.
    pub(crate) async fn wait_for_event(&self, words: &[&str]) -> Result<()> {
        let start = now();
        loop {
            let events = self.list_events().await?;
            if events.iter().any(|event| words.iter().all(|word| event.contains(word))) {
                return Ok(());
            }
            ensure!(start.elapsed() < WAIT_TIMEOUT, "no event contains {words:?}: {events:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

#[expect(clippy::disallowed_methods, reason = "a test waits in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns a container that runs a shell script.
pub(crate) fn shell_container(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": "host", "command": ["/bin/sh", "-c", script] })
}

pub(crate) fn condition_status(pod: &Pod, kind: &str) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    Some(conditions.iter().find(|condition| condition.type_ == kind)?.status.clone())
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition_status(pod, "Ready").as_deref() == Some("True")
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Returns the status of the pod's first container.
pub(crate) fn first_container_status(pod: &Pod) -> Result<&k8s_openapi::api::core::v1::ContainerStatus> {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    containers.and_then(|containers| containers.first()).context("the pod has no container status")
}
