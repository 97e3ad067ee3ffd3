//! What the kubelet tells about a pod, as events on it, each an object of its own. Nothing waits for them.

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

/// Where events go in.
#[derive(Debug, Clone)]
pub(super) struct PodEventRecorder(mpsc::UnboundedSender<PodEvent>);

/// Writes what comes; ends with the last [`Teller`].
#[derive(Debug)]
pub(super) struct PodEventPublisher(mpsc::UnboundedReceiver<PodEvent>);

#[derive(Debug)]
struct PodEvent {
    pod: ObjectReference,
    kind: &'static str,
    reason: String,
    note: String,
}

/// Both ends.
pub(super) fn channel() -> (PodEventRecorder, PodEventPublisher) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (PodEventRecorder(sender), PodEventPublisher(receiver))
}

impl PodEventRecorder {
    /// Something went as it should.
    pub(super) fn normal(&self, pod: &Pod, reason: &str, note: String) {
        self.record(pod, "Normal", reason, note);
    }

    /// Something did not.
    pub(super) fn warning(&self, pod: &Pod, reason: &str, note: String) {
        self.record(pod, "Warning", reason, note);
    }

    fn record(&self, pod: &Pod, kind: &'static str, reason: &str, note: String) {
        let told = PodEvent { pod: pod.object_ref(&()), kind, reason: reason.to_owned(), note };
        // Nobody listens only when the bed ends.
        drop(self.0.send(told));
    }
}

impl PodEventPublisher {
    /// Writes until nobody can tell anything any more.
    pub(super) async fn run(mut self, client: Client, node: String) {
        while let Some(told) = self.0.recv().await {
            let api = Api::namespaced(client.clone(), told.pod.namespace.as_deref().unwrap_or_default());
            // A lost event changes nothing.
            drop(api.create(&PostParams::default(), &event(told, &node)).await);
        }
    }
}

fn event(told: PodEvent, instance: &str) -> Event {
    let pod = told.pod.name.clone().unwrap_or_default();
    // What the API server takes at most is 1 KiB.
    let note: String = told.note.chars().take(500).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{pod}.{:016x}", rand::random::<u64>())),
            namespace: told.pod.namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some(told.reason.clone()),
        event_time: Some(MicroTime(clock::timestamp())),
        note: Some(note),
        reason: Some(told.reason),
        regarding: Some(told.pod),
        reporting_controller: Some("rollora.dev/kubelet-stand-in".to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(told.kind.to_owned()),
        ..Event::default()
    }
}
