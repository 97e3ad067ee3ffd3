//! The objects and logs that a failed scenario prints.

use super::{ClusterEnvironment, observe::operator_directives};
use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use rollora_testbed::{guide::ADAPTERS_CONFIG_MAP, kubelet::ContainerHandle, pods};
use std::fmt::Write as _;

/// Lines of log per container; a third of it for a vLLM server.
const LOG_LINES: usize = 25;

pub(super) fn logs(cluster: &ClusterEnvironment) -> String {
    let mut containers = cluster.kubelet.containers();
    containers.sort_by_key(|container| (container.name() == "vllm", container.pod().to_owned()));
    let log = |container: &ContainerHandle| {
        let (pod, name, restarts) = (container.pod(), container.name(), container.restarts());
        let lines = if name == "vllm" { LOG_LINES / 3 } else { LOG_LINES };
        format!("log of {pod}/{name}, {restarts} restarts:\n{}", container.log_tail(lines))
    };
    let mut text: String = containers.iter().map(log).collect();
    // Envoy logs warnings only.
    write!(text, "log of Envoy:\n{}", cluster.gateway.log_tail(10)).ok();
    text
}

pub(super) async fn describe_objects(cluster: &ClusterEnvironment) -> String {
    let mut text = String::new();
    for pod in cluster.watched_objects.pods.all() {
        writeln!(text, "pod {}", describe_pod(&pod)).ok();
    }
    for (group, version) in [("llm-d.ai", "v1alpha2"), ("inference.networking.x-k8s.io", "v1alpha2")] {
        let kind = GroupVersionKind::gvk(group, version, "InferenceModelRewrite");
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client(), cluster.namespace(), &resource);
        // A group that is not installed has no rewrites to print.
        for rewrite in api.list(&ListParams::default()).await.into_iter().flatten() {
            let (name, annotations) = (rewrite.name_any(), rewrite.annotations());
            writeln!(text, "rewrite {group} {name} {annotations:?} {}", rewrite.data["spec"]).ok();
        }
    }
    if let Some(directives) =
        cluster.watched_objects.config_maps.get(ADAPTERS_CONFIG_MAP).as_ref().and_then(operator_directives)
    {
        writeln!(text, "the operator directives:\n{directives}").ok();
    }
    let api: Api<Event> = Api::namespaced(cluster.client(), cluster.namespace());
    match api.list(&ListParams::default()).await {
        Ok(events) => {
            let mut events = events.items;
            events.sort_by_key(|event| event.event_time.clone());
            let last = events.len().saturating_sub(40);
            for event in &events[last..] {
                writeln!(text, "event {}", describe_event(event)).ok();
            }
        }
        Err(error) => {
            writeln!(text, "events: {error}").ok();
        }
    }
    text
}

fn describe_pod(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let containers: Vec<_> = containers
        .map(|container| {
            let state = container.state.clone().unwrap_or_default();
            let waiting_reason = state.waiting.map(|waiting| format!("{:?} {:?}", waiting.reason, waiting.message));
            let terminated = state.terminated.map(|terminated| format!("exit {}", terminated.exit_code));
            let description = waiting_reason.or(terminated).unwrap_or_else(|| "runs".to_owned());
            format!("{} {description}, ready {}, {} restarts", container.name, container.ready, container.restart_count)
        })
        .collect();
    let (phase, ready) = (status.phase.unwrap_or_default(), pods::is_ready(pod));
    format!("{} {phase}, Ready {ready}: {}", pod.name_any(), containers.join("; "))
}

fn describe_event(event: &Event) -> String {
    let regarding = event.regarding.clone().unwrap_or_default();
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    format!(
        "{} {} {}: {} {}",
        word(&event.type_),
        word(&regarding.kind),
        word(&regarding.name),
        word(&event.reason),
        word(&event.note)
    )
}
