//! Derives the status of a pod from its containers. Pure.

use super::container::{ContainerView, RunState, Termination};
use crate::process::ExitReason;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use std::net::Ipv4Addr;

/// Inputs of a pod's status besides its object.
#[derive(Debug)]
pub(super) struct StatusInputs<'a> {
    pub(super) address: Ipv4Addr,
    /// When the kubelet accepted the pod.
    pub(super) start_time: Timestamp,
    /// Init containers, in the order of the spec.
    pub(super) init: &'a [ContainerView],
    pub(super) containers: &'a [ContainerView],
    /// Conditions of the last status, for their transition times.
    pub(super) previous_conditions: &'a [PodCondition],
    pub(super) now: Timestamp,
}

/// Returns whether an init container keeps running next to the containers: a native sidecar.
pub(super) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Returns whether a container that exited with `exit` must be restarted.
pub(super) fn should_restart(spec: &PodSpec, container: &Container, is_init: bool, exit: ExitReason) -> bool {
    let failed = exit != ExitReason::Exit(0);
    match spec.restart_policy.as_deref() {
        _ if is_init && is_sidecar(container) => true,
        Some("Never") => false,
        Some("OnFailure") => failed,
        _ if is_init => failed,
        _ => true,
    }
}

pub(super) fn pod_status(pod: &Pod, inputs: &StatusInputs<'_>) -> PodStatus {
    let Some(spec) = &pod.spec else { return PodStatus::default() };
    let init_specs = spec.init_containers.as_deref().unwrap_or_default();
    let init: Vec<_> =
        init_specs.iter().zip(inputs.init).map(|(spec, view)| container_status(spec, view, true)).collect();
    let containers: Vec<_> =
        spec.containers.iter().zip(inputs.containers).map(|(spec, view)| container_status(spec, view, false)).collect();

    let initialized = init_specs.iter().zip(inputs.init).all(|(spec, view)| is_initialized(spec, view));
    let phase = pod_phase(spec, inputs, initialized);
    let is_over = matches!(phase, "Succeeded" | "Failed");
    let sidecars = init_specs.iter().zip(&init).filter(|(spec, _)| is_sidecar(spec)).map(|(_, status)| status);
    let unready: Vec<_> = sidecars.chain(&containers).filter(|it| !it.ready).map(|it| it.name.as_str()).collect();
    let ready = unready.is_empty() && !is_over;
    let reason = match (ready, is_over) {
        (true, _) => None,
        (false, true) => Some(("PodCompleted", String::new())),
        (false, false) => {
            Some(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
        }
    };
    let not_initialized = || Some(("ContainersNotInitialized", "containers with incomplete status".to_owned()));
    let conditions = [
        ("PodReadyToStartContainers", !is_over, None),
        ("Initialized", initialized, if initialized { None } else { not_initialized() }),
        ("Ready", ready, reason.clone()),
        ("ContainersReady", ready, reason),
        ("PodScheduled", true, None),
    ];
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions.map(|(kind, holds, reason)| pod_condition(kind, holds, reason, inputs)).into()),
        init_container_statuses: Some(init).filter(|init| !init.is_empty()),
        container_statuses: Some(containers),
        host_ip: Some(Ipv4Addr::LOCALHOST.to_string()),
        host_ips: Some(vec![HostIP { ip: Ipv4Addr::LOCALHOST.to_string() }]),
        pod_ip: Some(inputs.address.to_string()),
        pod_ips: Some(vec![PodIP { ip: inputs.address.to_string() }]),
        start_time: Some(Time(inputs.start_time)),
        qos_class: pod.status.as_ref().and_then(|status| status.qos_class.clone()),
        ..PodStatus::default()
    }
}

/// Returns whether the containers after this init container may start.
pub(super) fn is_initialized(spec: &Container, view: &ContainerView) -> bool {
    if is_sidecar(spec) {
        return view.started;
    }
    matches!(&view.state, RunState::Terminated(termination) if termination.exit == ExitReason::Exit(0))
}

fn pod_phase(spec: &PodSpec, inputs: &StatusInputs<'_>, initialized: bool) -> &'static str {
    let ended = |view: &ContainerView| match &view.state {
        RunState::Terminated(termination) => Some(termination.exit),
        RunState::Waiting { .. } | RunState::Running { .. } => None,
    };
    let exits: Option<Vec<_>> = inputs.containers.iter().map(ended).collect();
    let for_good = |exits: &Vec<ExitReason>| {
        spec.containers.iter().zip(exits).all(|(container, exit)| !should_restart(spec, container, false, *exit))
    };
    match exits.filter(for_good) {
        Some(exits) if exits.iter().all(|exit| *exit == ExitReason::Exit(0)) => "Succeeded",
        Some(_) => "Failed",
        None if initialized && inputs.containers.iter().all(|view| view.id.is_some()) => "Running",
        None => "Pending",
    }
}

fn container_status(spec: &Container, view: &ContainerView, is_init: bool) -> ContainerStatus {
    let is_done = is_init && !is_sidecar(spec) && is_initialized(spec, view);
    let image = spec.image.clone().unwrap_or_default();
    ContainerStatus {
        name: spec.name.clone(),
        image_id: image.clone(),
        image,
        container_id: view.id.clone(),
        restart_count: view.restart_count,
        started: Some(view.started),
        ready: view.ready || is_done,
        state: Some(match &view.state {
            RunState::Waiting { reason, message } => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some((*reason).to_owned()),
                    message: Some(message.clone()).filter(|message| !message.is_empty()),
                }),
                ..ContainerState::default()
            },
            RunState::Running { started_at } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
                ..ContainerState::default()
            },
            RunState::Terminated(termination) => terminated_state(termination),
        }),
        last_state: view.last_termination.as_ref().map(terminated_state),
        ..ContainerStatus::default()
    }
}

fn terminated_state(termination: &Termination) -> ContainerState {
    let (exit_code, signal) = match termination.exit {
        ExitReason::Exit(code) => (code, None),
        ExitReason::Signal(signal) => (128 + signal, Some(signal)),
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code,
            signal,
            reason: Some(if exit_code == 0 { "Completed" } else { "Error" }.to_owned()),
            started_at: Some(Time(termination.started_at)),
            finished_at: Some(Time(termination.finished_at)),
            container_id: termination.id.clone(),
            message: None,
        }),
        ..ContainerState::default()
    }
}

fn pod_condition(kind: &str, holds: bool, reason: Option<(&str, String)>, inputs: &StatusInputs<'_>) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let before = inputs.previous_conditions.iter().find(|before| before.type_ == kind && before.status == status);
    let last_transition_time = before.and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.as_ref().map(|(reason, _)| (*reason).to_owned()),
        message: reason.map(|(_, message)| message).filter(|message| !message.is_empty()),
        last_transition_time: Some(last_transition_time.unwrap_or(Time(inputs.now))),
        ..PodCondition::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(restart_policy: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "vllm-0" },
            "spec": {
                "restartPolicy": restart_policy,
                "initContainers": [
                    { "name": "once", "image": "host" },
                    { "name": "sidecar", "image": "host", "restartPolicy": "Always" },
                ],
                "containers": [{ "name": "vllm", "image": "host" }],
            },
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn waiting() -> ContainerView {
        let run = RunState::Waiting { reason: "PodInitializing", message: String::new() };
        ContainerView { state: run, last_termination: None, restart_count: 0, id: None, started: false, ready: false }
    }

    fn running(ready: bool) -> ContainerView {
        let run = RunState::Running { started_at: at(1) };
        ContainerView { state: run, id: Some("id".to_owned()), started: true, ready, ..waiting() }
    }

    fn ended(exit: ExitReason) -> ContainerView {
        let termination = Termination { exit, started_at: at(1), finished_at: at(2), id: None };
        ContainerView { state: RunState::Terminated(termination), id: Some("id".to_owned()), ..waiting() }
    }

    fn status_of(
        pod: &Pod,
        init: &[ContainerView],
        containers: &[ContainerView],
        before: &[PodCondition],
        now: i64,
    ) -> PodStatus {
        let address = Ipv4Addr::new(127, 64, 0, 1);
        pod_status(
            pod,
            &StatusInputs { address, start_time: at(0), init, containers, previous_conditions: before, now: at(now) },
        )
    }

    fn holds(status: &PodStatus, kind: &str) -> bool {
        let conditions = status.conditions.as_ref().unwrap();
        conditions.iter().find(|condition| condition.type_ == kind).unwrap().status == "True"
    }

    #[test]
    fn phase_and_readiness_follow_containers_and_sidecars() {
        let (pod, done) = (pod("Always"), ended(ExitReason::Exit(0)));
        for (sidecar, vllm, phase, initialized, ready) in [
            (waiting(), waiting(), "Pending", false, false),
            (running(false), waiting(), "Pending", true, false),
            (running(false), running(true), "Running", true, false),
            (running(true), running(false), "Running", true, false),
            (running(true), running(true), "Running", true, true),
            (running(true), ended(ExitReason::Signal(9)), "Running", true, false),
        ] {
            let status = status_of(&pod, &[done.clone(), sidecar], &[vllm], &[], 5);
            assert_eq!(status.phase.as_deref(), Some(phase));
            assert_eq!((holds(&status, "Initialized"), holds(&status, "Ready")), (initialized, ready), "{status:?}");
            assert_eq!(holds(&status, "ContainersReady"), ready);
        }
    }

    #[test]
    fn exit_codes_and_restart_policy_determine_phase() {
        let done = ended(ExitReason::Exit(0));
        for (policy, exit, phase) in [
            ("Never", ExitReason::Exit(0), "Succeeded"),
            ("Never", ExitReason::Exit(1), "Failed"),
            ("OnFailure", ExitReason::Exit(0), "Succeeded"),
            ("OnFailure", ExitReason::Exit(1), "Running"),
            ("Always", ExitReason::Exit(0), "Running"),
        ] {
            let status = status_of(&pod(policy), &[done.clone(), running(true)], &[ended(exit)], &[], 5);
            assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {exit:?}");
        }
    }

    #[test]
    fn transition_time_changes_only_with_the_status() {
        let (pod, init) = (pod("Always"), [ended(ExitReason::Exit(0)), running(true)]);
        let time = |status: &PodStatus| {
            let ready = status.conditions.iter().flatten().find(|it| it.type_ == "Ready").unwrap();
            ready.last_transition_time.clone().unwrap().0.as_second()
        };
        let first = status_of(&pod, &init, &[running(false)], &[], 5);
        let same = status_of(&pod, &init, &[running(false)], first.conditions.as_ref().unwrap(), 6);
        let other = status_of(&pod, &init, &[running(true)], same.conditions.as_ref().unwrap(), 7);
        assert_eq!((time(&first), time(&same), time(&other)), (5, 5, 7));
    }

    #[test]
    fn killed_container_reports_its_signal() {
        let status = status_of(&pod("Always"), &[waiting(), waiting()], &[ended(ExitReason::Signal(9))], &[], 5);
        let state = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
        assert_eq!((state.exit_code, state.signal), (137, Some(9)));
    }
}
