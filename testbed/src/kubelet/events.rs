//! Events about pods, each written as an object of its own. Callers do not wait for the write.

use crate::clock;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, Resource as _, api::PostParams, core::ObjectMeta};
use tokio::sync::mpsc;

/// Queues events for the publisher.
#[derive(Debug, Clone)]
pub(super) struct PodEventRecorder(mpsc::UnboundedSender<PodEvent>);

/// Writes queued events; ends when the last [`PodEventRecorder`] is dropped.
#[derive(Debug)]
pub(super) struct PodEventPublisher(mpsc::UnboundedReceiver<PodEvent>);

#[derive(Debug)]
struct PodEvent {
    pod: ObjectReference,
    kind: &'static str,
    reason: String,
    note: String,
}

/// Returns both ends of the queue.
pub(super) fn channel() -> (PodEventRecorder, PodEventPublisher) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (PodEventRecorder(sender), PodEventPublisher(receiver))
}

impl PodEventRecorder {
    /// Records an expected event of type `Normal`.
    pub(super) fn normal(&self, pod: &Pod, reason: &str, note: String) {
        self.record(pod, "Normal", reason, note);
    }

    /// Records a failure as an event of type `Warning`.
    pub(super) fn warning(&self, pod: &Pod, reason: &str, note: String) {
        self.record(pod, "Warning", reason, note);
    }

    fn record(&self, pod: &Pod, kind: &'static str, reason: &str, note: String) {
        let event = PodEvent { pod: pod.object_ref(&()), kind, reason: reason.to_owned(), note };
        // Sending fails only when the testbed ends.
        drop(self.0.send(event));
    }
}

impl PodEventPublisher {
    /// Writes events until all recorders are dropped.
    pub(super) async fn run(mut self, client: Client, node: String) {
        while let Some(event) = self.0.recv().await {
            let api = Api::namespaced(client.clone(), event.pod.namespace.as_deref().unwrap_or_default());
            // Losing an event has no consequences.
            drop(api.create(&PostParams::default(), &to_event(event, &node)).await);
        }
    }
}

fn to_event(event: PodEvent, instance: &str) -> Event {
    let pod = event.pod.name.clone().unwrap_or_default();
    // The API server accepts at most 1 KiB.
    let note: String = event.note.chars().take(500).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{pod}.{:016x}", rand::random::<u64>())),
            namespace: event.pod.namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some(event.reason.clone()),
        event_time: Some(MicroTime(clock::timestamp())),
        note: Some(note),
        reason: Some(event.reason),
        regarding: Some(event.pod),
        reporting_controller: Some("rollora.dev/kubelet-stand-in".to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(event.kind.to_owned()),
        ..Event::default()
    }
}
