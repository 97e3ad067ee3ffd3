//! The life cycle of one pod: volumes, init containers including native sidecars, containers, and termination. The
//! pod's status is written after every change.

use super::{
    NodeContext,
    backoff::BackoffState,
    container::ContainerHandle,
    expansion::{MountPaths, PodContext, expand_variables},
    loopback::PodIp,
    probes::{self, ProbeFlow, Prober},
    programs::Invocation,
    status::{self, StatusInputs, is_initialized},
    volumes::Volumes,
};
use crate::{clock, process::ExitReason};
use anyhow::Result;
use k8s_openapi::{
    api::core::v1::{Container as Spec, ExecAction, Pod, PodSpec, PodStatus},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// Delay before a failed operation is retried; a change of a volume's source retries it immediately.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Minimum grace period of a container, even if that of the pod is over.
const MIN_GRACE: Duration = Duration::from_secs(2);
/// Variables of the testbed's own environment that containers inherit.
const INHERITED_ENV: [&str; 4] = ["PATH", "HOME", "TMPDIR", "RUST_BACKTRACE"];

/// Desired state of a pod, as derived from its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DesiredPodState {
    Running,
    /// The pod is being deleted and has this grace period.
    Terminating(Duration),
    /// The object is gone already.
    Deleted,
}

/// Runs the containers of one pod, and keeps its status up to date.
#[derive(Debug)]
pub(super) struct PodWorker {
    context: Arc<NodeContext>,
    pod: Pod,
    spec: PodSpec,
    folder: PathBuf,
    address: PodIp,
    volumes: Volumes,
    init: Vec<ContainerHandle>,
    containers: Vec<ContainerHandle>,
    changed: watch::Sender<()>,
    start_time: Timestamp,
    last_status: Mutex<PodStatus>,
}

/// What a container was started with; probes and hooks use the same.
struct LaunchContext {
    mounts: MountPaths,
    env: BTreeMap<String, String>,
}

impl PodWorker {
    pub(super) fn new(context: &Arc<NodeContext>, pod: Pod) -> Result<Self> {
        let address = context.addresses.allocate()?;
        let folder = context.folder.join("pods").join(pod.uid().unwrap_or_default());
        fs::create_dir_all(&folder)?;
        let volumes = Volumes::new(&pod, &folder)?;
        let spec = pod.spec.clone().unwrap_or_default();
        let changed = watch::Sender::new(());
        let (name, logs) = (pod.name_any(), context.folder.join("logs"));
        fs::create_dir_all(&logs)?;
        let containers = |specs: &[Spec]| {
            specs
                .iter()
                .map(|spec| ContainerHandle::new(&name, &spec.name, address.ip(), &logs, changed.clone()))
                .collect::<Vec<_>>()
        };
        let init = containers(spec.init_containers.as_deref().unwrap_or_default());
        let containers = containers(&spec.containers);
        for (container, spec) in init.iter().chain(&containers).zip(container_specs(&spec)) {
            volumes.mounts(spec)?;
            debug_assert_eq!(container.name(), spec.name);
        }
        Ok(Self {
            context: Arc::clone(context),
            spec,
            folder,
            address,
            volumes,
            init,
            containers,
            changed,
            start_time: clock::timestamp(),
            last_status: Mutex::default(),
            pod,
        })
    }

    /// Returns all containers of the pod, the init containers first.
    pub(super) fn containers(&self) -> Vec<ContainerHandle> {
        self.init.iter().chain(&self.containers).cloned().collect()
    }

    /// Runs the pod until its object is gone.
    pub(super) async fn run(self: Arc<Self>, mut desired: watch::Receiver<DesiredPodState>) {
        let life = async {
            let state = tokio::select! {
                state = wait_termination(&mut desired) => state,
                () = Arc::clone(&self).run_containers() => wait_termination(&mut desired).await,
            };
            let grace = if let DesiredPodState::Terminating(grace) = state { grace } else { MIN_GRACE };
            self.stop_all(clock::now() + grace).await;
            state
        };
        let state = tokio::select! {
            state = life => state,
            () = self.sync_status() => return,
        };
        if state != DesiredPodState::Deleted {
            self.write_status().await;
            self.delete_object().await;
        }
        // If this fails, the folder is removed when the testbed ends.
        drop(fs::remove_dir_all(&self.folder));
    }

    /// Returns when all containers have exited and will not be restarted.
    async fn run_containers(self: Arc<Self>) {
        self.setup_volumes().await;
        let mut background = JoinSet::new();
        background.spawn({
            let worker = Arc::clone(&self);
            async move { worker.refresh_volumes().await }
        });
        for index in 0..self.init.len() {
            let (container, spec) = (&self.init[index], container_specs(&self.spec).nth(index));
            let Some(spec) = spec.cloned() else { continue };
            background.spawn(Arc::clone(&self).supervise(container.clone(), spec.clone(), true));
            let mut changes = self.changed.subscribe();
            while !is_initialized(&spec, &container.view()) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }
        let mut running = JoinSet::new();
        for (container, spec) in self.containers.iter().zip(&self.spec.containers) {
            running.spawn(Arc::clone(&self).supervise(container.clone(), spec.clone(), false));
        }
        while running.join_next().await.is_some() {}
        // The pod is complete; its sidecars are stopped last.
        self.stop_all(clock::now() + MIN_GRACE).await;
    }

    fn pod_context(&self) -> PodContext<'_> {
        PodContext { pod: &self.pod, address: self.address.ip(), config: &self.context.sources }
    }
}

impl PodWorker {
    /// Creates the volumes, and retries until that succeeds.
    async fn setup_volumes(&self) {
        self.context.sources.wait_synced().await;
        let mut changes = self.context.sources.subscribe();
        let mut last_message = String::new();
        while let Err(error) = self.volumes.sync(&self.context, self.pod_context()).await {
            let message = format!("{error:#}");
            if message != last_message {
                self.context.recorder.warning(
                    &self.pod,
                    "FailedMount",
                    format!("MountVolume.SetUp failed for {message}"),
                );
                last_message = message;
            }
            // An error means that the testbed ends.
            drop(tokio::time::timeout(RETRY_DELAY, changes.changed()).await);
        }
    }

    /// Updates the volumes when their sources change or a token must be renewed.
    async fn refresh_volumes(&self) {
        let mut changes = self.context.sources.subscribe();
        loop {
            let due = self.volumes.next_renewal().map_or(Duration::MAX, |due| {
                Duration::try_from(due.duration_since(clock::timestamp())).unwrap_or_default()
            });
            tokio::select! {
                result = changes.changed() => {
                    if result.is_err() {
                        return;
                    }
                    self.context.wait_projection_delay().await;
                    changes.mark_unchanged();
                }
                () = tokio::time::sleep(due) => {}
            }
            if let Err(error) = self.volumes.sync(&self.context, self.pod_context()).await {
                self.context.recorder.warning(&self.pod, "FailedMount", format!("{error:#}"));
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

impl PodWorker {
    /// Starts a container, and restarts it as the pod's policy says; returns when it is not restarted any more.
    async fn supervise(self: Arc<Self>, container: ContainerHandle, spec: Spec, is_init: bool) {
        let mut backoff = BackoffState::new(self.context.backoff);
        loop {
            container.wait_startable().await;
            let started = match self.start_container(&container, &spec) {
                Ok(started) => started,
                Err(error) => {
                    let message = format!("{error:#}");
                    self.context.recorder.warning(&self.pod, "Failed", message.clone());
                    container.set_waiting("CreateContainerConfigError", message);
                    tokio::time::sleep(RETRY_DELAY).await;
                    continue;
                }
            };
            self.context.recorder.normal(&self.pod, "Started", format!("Started container {}", spec.name));
            let begin = clock::now();
            let exit = tokio::select! {
                exit = container.wait_exit() => exit,
                grace = self.run_probes(&container, &spec, &started) => container.terminate(clock::now() + grace).await,
            };
            if !status::should_restart(&self.spec, &spec, is_init, exit) {
                return;
            }
            if container.is_held() {
                container.set_waiting("CrashLoopBackOff", "held by the testbed".to_owned());
                continue;
            }
            let delay = backoff.delay_after(begin.elapsed());
            if !delay.is_zero() {
                let message = format!("back-off {delay:?} restarting failed container={}", spec.name);
                self.context.recorder.warning(&self.pod, "BackOff", message.clone());
                container.set_waiting("CrashLoopBackOff", message);
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = container.wait_released() => {}
                }
            }
        }
    }

    fn start_container(&self, container: &ContainerHandle, spec: &Spec) -> Result<LaunchContext> {
        let mounts = self.volumes.mounts(spec)?;
        let (pod, address) = (self.pod.name_any(), self.address.ip());
        let mut env = self.pod_context().env(spec)?;
        env.insert("HOSTNAME".to_owned(), pod.clone());
        if let Some(kubeconfig) = self.volumes.kubeconfig() {
            env.entry("KUBECONFIG".to_owned()).or_insert_with(|| kubeconfig.display().to_string());
        }
        for value in env.values_mut() {
            *value = mounts.translate(value);
        }
        for name in INHERITED_ENV {
            if let Ok(value) = std::env::var(name) {
                env.entry(name.to_owned()).or_insert(value);
            }
        }
        let expand = |list: &Option<Vec<String>>| {
            list.iter().flatten().map(|word| mounts.translate(&expand_variables(word, &env))).collect()
        };
        let (command, args) = (expand(&spec.command), expand(&spec.args));
        let invocation = Invocation { pod, address, command, args, env: env.clone() };
        let mut launch = self.context.programs.launch(spec.image.as_deref().unwrap_or_default(), &invocation)?;
        // Variables of the program itself are added last, because `env_clear` removes them too.
        let own = |(name, value): (&OsStr, Option<&OsStr>)| Some((name.to_owned(), value?.to_owned()));
        let own: Vec<_> = launch.command.get_envs().filter_map(own).collect();
        launch.command.env_clear().envs(&env).envs(own);
        if launch.command.get_current_dir().is_none() {
            let folder = spec.working_dir.as_ref().map(|folder| mounts.host_path(folder.as_ref()));
            launch.command.current_dir(folder.filter(|folder| folder.is_dir()).unwrap_or_else(|| self.folder.clone()));
        }
        let number = container.restarts() + u32::from(container.view().id.is_some());
        let id = format!("process://{}/{}/{number}", self.pod.uid().unwrap_or_default(), spec.name);
        container.start(launch, id)?;
        Ok(LaunchContext { mounts, env })
    }

    /// Runs the probes; returns the grace period of the container when it must be stopped.
    async fn run_probes(&self, container: &ContainerHandle, spec: &Spec, started: &LaunchContext) -> Duration {
        let prober = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
            probe.as_ref().map(|probe| Prober::new(probe, spec, self.address.ip(), &started.mounts, &started.env))
        };
        let (startup, ready, live) =
            (prober(&spec.startup_probe), prober(&spec.readiness_probe), prober(&spec.liveness_probe));
        let pod_grace = Duration::from_secs(self.spec.termination_grace_period_seconds.unwrap_or(30).unsigned_abs());
        let unhealthy = |kind: &str, message: &str| {
            self.context.recorder.warning(&self.pod, "Unhealthy", format!("{kind} probe failed: {message}"));
        };
        if let Some(startup) = startup {
            let mut failed = false;
            let on_result = |success: bool, message: &str| {
                if !success {
                    failed = true;
                    unhealthy("Startup", message);
                }
                ProbeFlow::Stop
            };
            startup.run(on_result).await;
            if failed {
                return startup.termination_grace().unwrap_or(pod_grace);
            }
        }
        container.update_view(|view| view.started = true);
        let ready = async {
            let Some(ready) = ready else {
                container.update_view(|view| view.ready = true);
                return std::future::pending().await;
            };
            let mut before = false;
            let on_result = |success: bool, message: &str| {
                if before && !success {
                    unhealthy("Readiness", message);
                }
                before = success;
                container.update_view(|view| view.ready = success);
                ProbeFlow::Continue
            };
            ready.run(on_result).await;
        };
        let live = async {
            let Some(live) = live else { return std::future::pending().await };
            let on_result = |success: bool, message: &str| {
                if success {
                    return ProbeFlow::Continue;
                }
                unhealthy("Liveness", message);
                ProbeFlow::Stop
            };
            live.run(on_result).await;
            live.termination_grace().unwrap_or(pod_grace)
        };
        tokio::select! {
            grace = live => grace,
            () = ready => pod_grace,
        }
    }

    /// Stops everything: first the containers, then the sidecars, the last one first.
    async fn stop_all(&self, deadline: Instant) {
        let containers = self.containers.iter().zip(&self.spec.containers);
        futures_util::future::join_all(
            containers.map(|(container, spec)| self.stop_container(container, spec, deadline)),
        )
        .await;
        let specs = self.spec.init_containers.as_deref().unwrap_or_default();
        for (container, spec) in self.init.iter().zip(specs).rev() {
            self.stop_container(container, spec, deadline.max(clock::now() + MIN_GRACE)).await;
        }
    }

    async fn stop_container(&self, container: &ContainerHandle, spec: &Spec, deadline: Instant) {
        if !container.is_running() {
            return;
        }
        self.context.recorder.normal(&self.pod, "Killing", format!("Stopping container {}", spec.name));
        let remaining = deadline.saturating_duration_since(clock::now());
        if let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
            let hook = async {
                if let Some(sleep) = &hook.sleep {
                    tokio::time::sleep(Duration::from_secs(sleep.seconds.unsigned_abs())).await;
                }
                if let Some(exec) = &hook.exec {
                    self.run_pre_stop(spec, exec).await;
                }
            };
            // The container gets SIGTERM next, whatever the result of the hook.
            drop(tokio::time::timeout(remaining, hook).await);
        }
        let _: ExitReason = container.terminate(deadline).await;
    }

    async fn run_pre_stop(&self, spec: &Spec, exec: &ExecAction) {
        let run = async {
            let (mounts, env) = (self.volumes.mounts(spec)?, self.pod_context().env(spec)?);
            probes::run_exec(exec, &mounts, &env).await
        };
        if let Err(error) = run.await {
            self.context.recorder.warning(&self.pod, "FailedPreStopHook", format!("{error:#}"));
        }
    }
}

impl PodWorker {
    /// Writes the status after every change; returns when the object does not exist any more.
    async fn sync_status(&self) {
        let mut changes = self.changed.subscribe();
        loop {
            self.write_status().await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn write_status(&self) {
        let views = |containers: &[ContainerHandle]| containers.iter().map(ContainerHandle::view).collect::<Vec<_>>();
        loop {
            let before = self.last_status.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (init, containers) = (views(&self.init), views(&self.containers));
            let status = status::pod_status(
                &self.pod,
                &StatusInputs {
                    address: self.address.ip(),
                    start_time: self.start_time,
                    init: &init,
                    containers: &containers,
                    previous_conditions: before.conditions.as_deref().unwrap_or_default(),
                    now: clock::timestamp(),
                },
            );
            if status == before {
                return;
            }
            // Include the UID: the object may have been replaced by another one of the same name.
            let patch = Patch::Merge(json!({ "metadata": { "uid": self.pod.uid() }, "status": status }));
            let written = self.api().patch_status(&self.pod.name_any(), &PatchParams::default(), &patch).await;
            if written.as_ref().err().is_none_or(is_permanent) {
                *self.last_status.lock().unwrap_or_else(PoisonError::into_inner) = status;
                return;
            }
            // The API server is unavailable. The status is computed again because it may change meanwhile.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Deletes the object, as the last step of the pod's termination.
    async fn delete_object(&self) {
        let preconditions = Preconditions { uid: self.pod.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default().grace_period(0) };
        loop {
            match self.api().delete(&self.pod.name_any(), &params).await {
                Ok(_) => return,
                Err(error) if is_permanent(&error) => return,
                Err(_) => tokio::time::sleep(RETRY_DELAY).await,
            }
        }
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &self.context.namespace)
    }
}

/// Waits until the pod must end.
async fn wait_termination(desired: &mut watch::Receiver<DesiredPodState>) -> DesiredPodState {
    // The sender is dropped only when the testbed ends, and this task ends with it.
    let state = desired.wait_for(|state| *state != DesiredPodState::Running).await;
    state.map_or(DesiredPodState::Deleted, |state| *state)
}

/// In the order of [`PodWorker::containers`].
fn container_specs(spec: &PodSpec) -> impl Iterator<Item = &Spec> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Returns whether retrying is pointless: the object is gone, or was replaced by another one of the same name.
fn is_permanent(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    matches!(status.code, 404 | 422) || status.code == 409 && status.message.contains("UID")
}
