//! What a Deployment's controller does, as far as a bed needs it: there are always as many pods as the Deployment says.
//!
//! A pod that is deleted is replaced at once, while it still ends. There is no rollout of a changed template, and pods
//! are numbered (`vllm-qwen3-32b-0`), have no owner, and are told which node is theirs.

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

/// The label of a pod with the name of its Deployment.
const DEPLOYMENT_LABEL: &str = "rollora.dev/bed-workload";
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The Deployments of a bed.
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
    /// Created, and not seen yet.
    expected: BTreeSet<String>,
}

impl DeploymentController {
    /// Those of these objects that are Deployments.
    pub fn from_manifests(objects: &[Value], node: &str) -> Result<Self> {
        let deployments = objects.iter().filter(|object| object["kind"] == "Deployment");
        let workload = |object: &Value| {
            let name = object["metadata"]["name"].as_str().context("a Deployment without name")?;
            let replicas = object["spec"]["replicas"].as_u64().unwrap_or(1);
            let mut template = object["spec"]["template"].clone();
            template["spec"]["nodeName"] = json!(node);
            template["metadata"]["labels"][DEPLOYMENT_LABEL] = json!(name);
            let replicas = usize::try_from(replicas)?;
            Ok((name.to_owned(), ManagedDeployment { replicas, template, next_index: 0, expected: BTreeSet::new() }))
        };
        let by_name = deployments.map(workload).collect::<Result<_>>()?;
        Ok(Self { by_name: Mutex::new(by_name), scale_changed: watch::Sender::new(()) })
    }

    /// From now on there are so many pods; the newest go first.
    pub fn scale(&self, name: &str, replicas: usize) {
        if let Some(workload) = self.by_name.lock().unwrap_or_else(PoisonError::into_inner).get_mut(name) {
            workload.replicas = replicas;
        }
        self.scale_changed.send_replace(());
    }

    /// Keeps as many pods as there should be; never returns.
    pub async fn run(&self, api: Api<Pod>, mirror: &Reflector<Pod>) {
        let (mut changes, mut wanted) = (mirror.subscribe(), self.scale_changed.subscribe());
        loop {
            let (missing, surplus) = self.diff(mirror);
            let mut failed = false;
            for pod in missing {
                // A name that is taken belongs to a pod that was created in spite of an error.
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
                _ = wanted.changed() => {}
            }
        }
    }

    fn diff(&self, mirror: &Reflector<Pod>) -> (Vec<Pod>, Vec<String>) {
        let (mut missing, mut surplus) = (Vec::new(), Vec::new());
        for (name, workload) in self.by_name.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            workload.expected.retain(|pod| mirror.get(pod).is_none());
            let there = active_pods(name, mirror);
            let count = there.len() + workload.expected.len();
            missing.extend((count..workload.replicas).filter_map(|_| workload.next_pod(name)));
            let newest = there.iter().rev().take(there.len().saturating_sub(workload.replicas));
            surplus.extend(newest.filter_map(|pod| pod.metadata.name.clone()));
        }
        (missing, surplus)
    }

    fn clear_expectations(&self) {
        for workload in self.by_name.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            workload.expected.clear();
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
        // A template that is no pod is refused by the API server, in words.
        serde_json::from_value(object).ok()
    }
}

/// The pods of a Deployment that are to stay, the oldest first.
pub fn active_pods(name: &str, mirror: &Reflector<Pod>) -> Vec<Pod> {
    let mut pods: Vec<_> =
        mirror.all().into_iter().filter(|pod| belongs_to(pod, name) && pods::is_active(pod)).collect();
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
