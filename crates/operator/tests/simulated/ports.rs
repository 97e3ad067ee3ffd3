//! The two ports over the simulated world. Every call first takes the next fault of the queue.

use crate::{
    history::DocumentSnapshot,
    world::{Fault, Misconfiguration, World, WorldLog},
};
use futures_util::{Stream, stream};
use jiff::{SignedDuration, Timestamp};
use rollora_api::{
    names::{FINALIZER, ModelName},
    rewrite::{InferenceModelRewrite, PoolRef},
    rollout::{Rollout, RolloutStatus, spec::AdaptersRef},
};
use rollora_operator::{
    Clock,
    ports::{
        AdaptersDocument, AdaptersWrite, DocumentStore, Fleet, ObservedRouter, ObservedServer, Polled, Precondition,
        ReadError, ResourceVersion, RolloutEvent, RolloutKey, Versioned, WriteOutcome,
    },
};
use std::{
    sync::{Arc, Mutex, MutexGuard},
    task::Poll,
};
use tokio::sync::Notify;

/// Handle of a shared world, for one operator.
#[derive(Debug, Clone)]
pub(crate) struct Sim {
    world: Arc<Mutex<World>>,
    pub(crate) log: Arc<WorldLog>,
    /// Notified when the operator must crash.
    pub(crate) crash: Arc<Notify>,
    /// Progress of this operator, if it is stepped call by call.
    stepping: Option<Arc<Mutex<Stepping>>>,
}

/// Progress of an operator that is stepped call by call, concurrently with others.
#[derive(Debug, Default)]
pub(crate) struct Stepping {
    /// Random state that decides how many polls the next calls take.
    pub(crate) seed: u64,
    /// Lag of its reads of the Rollout, the rewrites and the adapters file.
    pub(crate) lags: [SignedDuration; 3],
    /// Number of the latest snapshot that it has read or written, by kind.
    pub(crate) min_snapshots: [usize; 3],
    /// Number of calls so far.
    pub(crate) calls: usize,
}

#[derive(Debug, Clone, Copy)]
enum DocumentKind {
    Rollout,
    Rewrites,
    Adapters,
}

impl Sim {
    pub(crate) fn new(world: World) -> Self {
        let log = world.log.clone_handle();
        Self { world: Arc::new(Mutex::new(world)), log, crash: Arc::default(), stepping: None }
    }

    /// Returns a handle for another operator in the same world, which is stepped call by call.
    pub(crate) fn with_stepping(&self, stepping: Stepping) -> Self {
        Self { crash: Arc::default(), stepping: Some(Arc::new(Mutex::new(stepping))), ..self.clone() }
    }

    pub(crate) fn stepping(&self) -> Option<MutexGuard<'_, Stepping>> {
        self.stepping.as_ref().map(|stepping| stepping.lock().unwrap())
    }

    /// Yields for one to three polls, if the operator is stepped call by call.
    async fn yield_steps(&self) {
        let polls = self.stepping().map_or(0, |mut stepping| {
            stepping.calls += 1;
            stepping.seed =
                stepping.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            1 + (stepping.seed >> 33) % 3
        });
        for _ in 0..polls {
            let mut waited = false;
            std::future::poll_fn(
                |_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending },
            )
            .await;
        }
    }

    /// Returns the documents as this operator reads them now; `None` if it reads the current ones.
    fn visible_snapshot(&self, world: &World, kind: DocumentKind) -> Option<Arc<DocumentSnapshot>> {
        let mut stepping = self.stepping()?;
        let number = world.visible_snapshot(stepping.lags[kind as usize], stepping.min_snapshots[kind as usize]);
        stepping.min_snapshots[kind as usize] = number;
        world.history.as_ref()?.get(number).cloned()
    }

    /// Records the documents, and lets later reads of this operator return nothing older.
    fn record_and_catch_up(&self, world: &mut World, kind: DocumentKind) {
        world.record_snapshot();
        self.catch_up(world, kind);
    }

    fn catch_up(&self, world: &World, kind: DocumentKind) {
        if let Some(mut stepping) = self.stepping() {
            stepping.min_snapshots[kind as usize] = world.latest_snapshot();
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Takes the next fault. The effect is in `call`, which is not executed if the fault occurs first.
    async fn with_fault<T>(
        &self,
        own_fault: Option<Fault>,
        call: impl FnOnce(&mut World) -> T,
        fail: impl FnOnce(PortFailure) -> T,
    ) -> T {
        self.yield_steps().await;
        let fault = own_fault.or_else(|| self.world().faults.pop_front()).unwrap_or(Fault::None);
        match fault {
            Fault::None => call(&mut self.world()),
            Fault::Unavailable => fail(PortFailure::Unavailable),
            Fault::LostResponse => {
                call(&mut self.world());
                fail(PortFailure::Unknown)
            }
            // A stepped operator has no running clock, so the timeout is over immediately.
            Fault::Hang if self.stepping.is_some() => {
                self.world().now += SignedDuration::from_secs(5);
                fail(PortFailure::Unknown)
            }
            Fault::Hang => self.hang().await,
            Fault::CrashBefore => self.crash().await,
            Fault::CrashAfter => {
                call(&mut self.world());
                self.crash().await
            }
        }
    }

    fn visible_rollout(&self, world: &World) -> Option<Versioned<Arc<Rollout>>> {
        let present = || (!world.deleted).then(|| (world.rollout.clone(), world.rollout_version));
        let snapshot = self.visible_snapshot(world, DocumentKind::Rollout);
        let name = &world.rollout.metadata.name;
        let (value, number) = snapshot.map_or_else(present, |documents| documents.rollout(name))?;
        Some(Versioned { resource_version: resource_version(number), value: Arc::new(value) })
    }

    async fn hang<T>(&self) -> T {
        self.world().now += SignedDuration::from_secs(5);
        std::future::pending().await
    }

    async fn hang_if_fleet_hangs(&self) -> Result<(), ReadError> {
        let hangs = self.world().fleet_hangs;
        match (hangs, &self.stepping) {
            (false, _) => Ok(()),
            (true, Some(_)) => Err(ReadError::Unavailable("no response in time".to_owned())),
            (true, None) => std::future::pending().await,
        }
    }

    async fn crash<T>(&self) -> T {
        self.crash.notify_one();
        std::future::pending().await
    }

    /// Fails if the configuration is broken in this respect.
    fn check_configuration(&self, what: impl Fn(&Misconfiguration) -> Option<String>) -> Result<(), ReadError> {
        what(&self.world().misconfiguration).map_or(Ok(()), |why| Err(ReadError::Invalid(why)))
    }

    async fn read<T>(&self, call: impl FnOnce(&mut World) -> T) -> Result<T, ReadError> {
        self.with_fault(None, |world| Ok(call(world)), |_| Err(ReadError::Unavailable("simulated".to_owned()))).await
    }

    async fn write(
        &self,
        key: &RolloutKey,
        kind: DocumentKind,
        call: impl FnOnce(&mut World) -> WriteOutcome,
    ) -> WriteOutcome {
        let fail = |failure| match failure {
            PortFailure::Unavailable => WriteOutcome::Unavailable("simulated".to_owned()),
            // After an unknown outcome the next read is not served from a cache.
            PortFailure::Unknown => {
                self.record_and_catch_up(&mut self.world(), kind);
                WriteOutcome::Unknown("simulated".to_owned())
            }
        };
        let call = |world: &mut World| {
            let written = world.with_rollout(&key.name, call);
            if matches!(written, WriteOutcome::Done(_)) {
                self.record_and_catch_up(world, kind);
            }
            written
        };
        let own_fault = {
            let mut world = self.world();
            world.writes += 1;
            world.write_faults.pop_front()
        };
        self.with_fault(own_fault, call, fail).await
    }
}

enum PortFailure {
    Unavailable,
    Unknown,
}

fn resource_version(number: u64) -> ResourceVersion {
    ResourceVersion(number.to_string())
}

impl Clock for Sim {
    fn now(&self) -> Timestamp {
        self.world().now
    }
}

impl DocumentStore for Sim {
    fn changes(&self) -> impl Stream<Item = RolloutKey> + Send {
        let key = RolloutKey { namespace: None, name: self.world().rollout.metadata.name.clone() };
        let sim = self.clone();
        stream::unfold((), move |()| {
            let (sim, key) = (sim.clone(), key.clone());
            async move {
                loop {
                    if std::mem::take(&mut sim.world().changed) {
                        return Some((key, ()));
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
        })
    }

    async fn rollouts(&self) -> Result<Vec<Versioned<Arc<Rollout>>>, ReadError> {
        self.read(|world| world.with_each_rollout(|world| self.visible_rollout(world)).into_iter().flatten().collect())
            .await
    }

    async fn rollout(&self, key: &RolloutKey) -> Result<Option<Versioned<Arc<Rollout>>>, ReadError> {
        self.read(|world| world.with_rollout(&key.name, |world| self.visible_rollout(world))).await
    }

    async fn rewrites(&self, _: &RolloutKey) -> Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError> {
        self.check_configuration(|missing| missing.rewrites.clone())?;
        self.read(|world| {
            let snapshot =
                self.visible_snapshot(world, DocumentKind::Rewrites).map(|documents| documents.rewrites.clone());
            let rewrites = snapshot.unwrap_or_else(|| world.rewrites.clone()).into_iter();
            rewrites
                .map(|(value, number)| Versioned { resource_version: resource_version(number), value: Arc::new(value) })
                .collect()
        })
        .await
    }

    async fn adapters(
        &self,
        _: &RolloutKey,
        reference: &AdaptersRef,
        at_least: Option<&ResourceVersion>,
    ) -> Result<Option<Versioned<AdaptersDocument>>, ReadError> {
        self.check_configuration(|missing| missing.adapters_problem.clone())?;
        self.read(|world| {
            if reference.name != world.file_name {
                let unread = world.unread_files.get(&reference.name).cloned();
                return unread.map(|(value, number)| Versioned { resource_version: resource_version(number), value });
            }
            let mut snapshot =
                self.visible_snapshot(world, DocumentKind::Adapters).map(|documents| documents.adapters.clone());
            let at_least = at_least.and_then(|version| version.0.parse().ok()).unwrap_or_default();
            if snapshot.as_ref().is_some_and(|(_, number)| *number < at_least) {
                self.catch_up(world, DocumentKind::Adapters);
                snapshot =
                    self.visible_snapshot(world, DocumentKind::Adapters).map(|documents| documents.adapters.clone());
            }
            let (value, number) = snapshot.unwrap_or_else(|| (world.adapters.clone(), world.adapters_version));
            let found = Versioned { resource_version: resource_version(number), value };
            (!world.misconfiguration.adapters).then_some(found)
        })
        .await
    }

    async fn write_status(&self, key: &RolloutKey, read: &ResourceVersion, status: &RolloutStatus) -> WriteOutcome {
        self.write(key, DocumentKind::Rollout, |world| {
            if *read != resource_version(world.rollout_version) || world.deleted {
                return WriteOutcome::Conflict;
            }
            if world.rollout.status.as_ref() == Some(status) {
                // An API server does not change the version either.
                return WriteOutcome::Done(resource_version(world.rollout_version));
            }
            if world.status().phase != status.phase || world.status().message != status.message {
                world.log_event(format!("{:?}: {}", status.phase, status.message));
            }
            world.rollout.status = Some(status.clone());
            world.rollout_version = world.next_version();
            world.status_writes += 1;
            WriteOutcome::Done(resource_version(world.rollout_version))
        })
        .await
    }

    async fn write_rewrite(
        &self,
        key: &RolloutKey,
        rewrite: &InferenceModelRewrite,
        precondition: &Precondition,
    ) -> WriteOutcome {
        self.write(key, DocumentKind::Rewrites, |world| {
            if let Some(why) = &world.misconfiguration.write_permission {
                return WriteOutcome::Refused(why.clone());
            }
            let name = &rewrite.metadata.name;
            let present = world.rewrites.iter().position(|(old, _)| old.metadata.name == *name);
            let number = world.next_version();
            let (mut rewrite, written) = (rewrite.clone(), rewrite);
            let others = world.other_footprint();
            match (present, precondition) {
                (None, Precondition::Absent) => {
                    rewrite.metadata.uid = Some(world.next_uid());
                    world.rewrites.push((rewrite, number));
                }
                (Some(index), Precondition::Unchanged(read)) if *read == resource_version(world.rewrites[index].1) => {
                    world.rewrites[index] = (rewrite, number);
                }
                _ => return WriteOutcome::Conflict,
            }
            world.rewrites_changed();
            world.check_sequence(written);
            world.check_other_footprint(others);
            if let Some(rival) = world.rival {
                world.edit_rewrite(rival);
            }
            WriteOutcome::Done(resource_version(number))
        })
        .await
    }

    async fn write_adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        read: &ResourceVersion,
        write: &AdaptersWrite,
    ) -> WriteOutcome {
        self.write(key, DocumentKind::Adapters, |world| {
            if world.unread_files.contains_key(&reference.name) {
                return world.write_unread_file(&reference.name, read, write);
            }
            if *read != resource_version(world.adapters_version) {
                return WriteOutcome::Conflict;
            }
            let (before, others) = (world.adapters.clone(), world.other_footprint());
            let number = world.write_adapters(write.user_text.clone(), write.directives_text.clone());
            let after = world.adapters.clone();
            world.with_each_rollout(|world| world.check_weighted_ids_held(&before, &after));
            world.check_other_footprint(others);
            WriteOutcome::Done(resource_version(number))
        })
        .await
    }

    fn supports_finalizers(&self) -> bool {
        true
    }

    async fn set_finalizer(&self, key: &RolloutKey, read: &ResourceVersion, present: bool) -> WriteOutcome {
        self.write(key, DocumentKind::Rollout, |world| {
            if *read != resource_version(world.rollout_version) || world.deleted {
                return WriteOutcome::Conflict;
            }
            world.log_event(if present { "the finalizer is set" } else { "the finalizer is removed" });
            world.rollout.metadata.finalizers = present.then(|| FINALIZER.to_owned()).into_iter().collect();
            world.rollout_version = world.next_version();
            world.remove_if_unfinalized();
            WriteOutcome::Done(resource_version(world.rollout_version))
        })
        .await
    }

    async fn publish_event(&self, key: &RolloutKey, event: &RolloutEvent) {
        let mut world = self.world();
        world.log_event(format!("event {}: {}", event.reason, event.message));
        world.with_rollout(&key.name, |world| world.events.push(event.clone()));
    }
}

impl Fleet for Sim {
    async fn servers(&self, _: &RolloutKey, _: &PoolRef) -> Result<Polled<ObservedServer>, ReadError> {
        self.hang_if_fleet_hangs().await?;
        self.check_configuration(|missing| missing.pool.clone())?;
        self.read(|world| world.server_reports(false).into()).await
    }

    async fn other_pool_servers(
        &self,
        _: &RolloutKey,
        _: &PoolRef,
        _: &AdaptersRef,
    ) -> Result<Polled<ObservedServer>, ReadError> {
        self.hang_if_fleet_hangs().await?;
        self.read(|world| world.server_reports(true).into()).await
    }

    async fn routers(&self, _: &RolloutKey, _: &PoolRef, _: &ModelName) -> Result<Polled<ObservedRouter>, ReadError> {
        self.hang_if_fleet_hangs().await?;
        self.read(|world| world.router_reports().into()).await
    }
}
