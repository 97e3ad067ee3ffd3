//! A minimal Deployment controller: keeps as many pods running as `spec.replicas` says.
//!
//! A deleted pod is replaced immediately, while it still terminates. A changed template is not rolled out. Pods are
//! numbered (`vllm-qwen3-32b-0`), have no owner reference, and are created with a node name, since there is no
//! scheduler.

use super::{pods, reflector::Reflector};
use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Label of a pod that holds the name of its Deployment.
const DEPLOYMENT_LABEL: &str = "rollora.dev/testbed-deployment";
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Controller for the Deployments of one testbed.
#[derive(Debug)]
pub struct DeploymentController {
    by_name: Mutex<BTreeMap<String, ManagedDeployment>>,
    scale_changed: watch::Sender<()>,
}

#[derive(Debug)]
struct ManagedDeployment {
    replicas: usize,
    template: Value,
    next_index: u32,
    // Names of pods that were created but are not in the reflector yet.
    expected: BTreeSet<String>,
}

impl DeploymentController {
    /// Takes the Deployments among `objects`; their pods are assigned to `node`.
    pub fn from_manifests(objects: &[Value], node: &str) -> Result<Self> {
        let deployments = objects.iter().filter(|object| object["kind"] == "Deployment");
        let deployment = |object: &Value| {
            let name = object["metadata"]["name"].as_str().context("a Deployment without name")?;
            let replicas = object["spec"]["replicas"].as_u64().unwrap_or(1);
            let mut template = object["spec"]["template"].clone();
            template["spec"]["nodeName"] = json!(node);
            template["metadata"]["labels"][DEPLOYMENT_LABEL] = json!(name);
            let replicas = usize::try_from(replicas)?;
            Ok((name.to_owned(), ManagedDeployment { replicas, template, next_index: 0, expected: BTreeSet::new() }))
        };
        let by_name = deployments.map(deployment).collect::<Result<_>>()?;
        Ok(Self { by_name: Mutex::new(by_name), scale_changed: watch::Sender::new(()) })
    }

    /// Sets the number of replicas of a Deployment. When scaled down, the newest pods are deleted first.
    pub fn scale(&self, name: &str, replicas: usize) {
        if let Some(deployment) = self.by_name.lock().unwrap_or_else(PoisonError::into_inner).get_mut(name) {
            deployment.replicas = replicas;
        }
        self.scale_changed.send_replace(());
    }

    /// Creates and deletes pods until their number matches the Deployments; never returns.
    pub async fn run(&self, api: Api<Pod>, reflector: &Reflector<Pod>) {
        let (mut changes, mut scale_changes) = (reflector.subscribe(), self.scale_changed.subscribe());
        loop {
            let (missing, surplus) = self.diff(reflector);
            let mut failed = false;
            for pod in missing {
                // A conflict on the name means that an earlier create succeeded although it returned an error.
                let created = api.create(&PostParams::default(), &pod).await;
                failed |= created.is_err_and(|error| !matches!(&error, kube::Error::Api(status) if status.code == 409));
            }
            for name in surplus {
                failed |= api.delete(&name, &kube::api::DeleteParams::default()).await.is_err();
            }
            if failed {
                tokio::time::sleep(RETRY_DELAY).await;
                self.clear_expectations();
                continue;
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = scale_changes.changed() => {}
            }
        }
    }

    fn diff(&self, reflector: &Reflector<Pod>) -> (Vec<Pod>, Vec<String>) {
        let (mut missing, mut surplus) = (Vec::new(), Vec::new());
        for (name, deployment) in self.by_name.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            deployment.expected.retain(|pod| reflector.get(pod).is_none());
            let active = active_pods(name, reflector);
            let count = active.len() + deployment.expected.len();
            missing.extend((count..deployment.replicas).filter_map(|_| deployment.next_pod(name)));
            let newest = active.iter().rev().take(active.len().saturating_sub(deployment.replicas));
            surplus.extend(newest.filter_map(|pod| pod.metadata.name.clone()));
        }
        (missing, surplus)
    }

    fn clear_expectations(&self) {
        for deployment in self.by_name.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            deployment.expected.clear();
        }
    }
}

impl ManagedDeployment {
    fn next_pod(&mut self, name: &str) -> Option<Pod> {
        let pod = format!("{name}-{}", self.next_index);
        self.next_index += 1;
        let mut object = self.template.clone();
        object["metadata"]["name"] = json!(pod);
        self.expected.insert(pod);
        // The API server rejects an invalid template with a message of its own.
        serde_json::from_value(object).ok()
    }
}

/// Returns the pods of a Deployment that are neither finished nor terminating, the oldest first.
pub fn active_pods(name: &str, reflector: &Reflector<Pod>) -> Vec<Pod> {
    let mut pods: Vec<_> =
        reflector.all().into_iter().filter(|pod| belongs_to(pod, name) && pods::is_active(pod)).collect();
    pods.sort_by_key(pod_index);
    pods
}

fn belongs_to(pod: &Pod, name: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(DEPLOYMENT_LABEL)).is_some_and(|label| label == name)
}

fn pod_index(pod: &Pod) -> u32 {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}
