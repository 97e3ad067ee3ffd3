//! The two ports over the simulated world. Every call first meets the next fault.

use crate::{
    past::Documents,
    world::{Fault, Log, Missing, World},
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
        AdaptersDocument, AdaptersWrite, Event, Fleet, Heard, Precondition, ReadError, RolloutKey, Router, Server,
        Store, Version, Versioned, Written,
    },
};
use std::{
    sync::{Arc, Mutex, MutexGuard},
    task::Poll,
};
use tokio::sync::Notify;

/// A shared world.
#[derive(Debug, Clone)]
pub(crate) struct Sim {
    world: Arc<Mutex<World>>,
    pub(crate) log: Arc<Log>,
    /// Tells that the operator has to die now.
    pub(crate) crash: Arc<Notify>,
    /// How this operator goes where it is moved call by call.
    gait: Option<Arc<Mutex<Gait>>>,
}

/// How an operator goes that is moved call by call, beside others.
#[derive(Debug, Default)]
pub(crate) struct Gait {
    /// Decides how many turns the next calls take.
    pub(crate) seed: u64,
    /// How late it hears of the Rollout, of rewrites and of the adapters file.
    pub(crate) lags: [SignedDuration; 3],
    /// What it has seen or written of each.
    pub(crate) floors: [usize; 3],
    /// Calls so far.
    pub(crate) calls: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Rollout,
    Rewrites,
    Adapters,
}

impl Sim {
    pub(crate) fn new(world: World) -> Self {
        let log = world.log.share();
        Self { world: Arc::new(Mutex::new(world)), log, crash: Arc::default(), gait: None }
    }

    /// Another operator in the same world, which is moved call by call.
    pub(crate) fn beside(&self, gait: Gait) -> Self {
        Self { crash: Arc::default(), gait: Some(Arc::new(Mutex::new(gait))), ..self.clone() }
    }

    pub(crate) fn gait(&self) -> Option<MutexGuard<'_, Gait>> {
        self.gait.as_ref().map(|gait| gait.lock().unwrap())
    }

    /// Waits for one to three turns, where it is moved call by call.
    async fn take_turns(&self) {
        let turns = self.gait().map_or(0, |mut gait| {
            gait.calls += 1;
            gait.seed = gait.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            1 + (gait.seed >> 33) % 3
        });
        for _ in 0..turns {
            let mut waited = false;
            std::future::poll_fn(
                |_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending },
            )
            .await;
        }
    }

    /// The documents as this operator sees them now; none where it sees everything at once.
    fn seen(&self, world: &World, kind: Kind) -> Option<Arc<Documents>> {
        let mut gait = self.gait()?;
        let number = world.seen(gait.lags[kind as usize], gait.floors[kind as usize]);
        gait.floors[kind as usize] = number;
        world.past.as_ref()?.get(number).cloned()
    }

    /// This operator has written it, or wants to know for sure.
    fn has_seen_all(&self, world: &mut World, kind: Kind) {
        world.record();
        self.hear_all(world, kind);
    }

    fn hear_all(&self, world: &World, kind: Kind) {
        if let Some(mut gait) = self.gait() {
            gait.floors[kind as usize] = world.present();
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Meets the next fault. What has to be done is done by `call`, which is not reached where the fault comes first.
    async fn meet<T>(
        &self,
        own: Option<Fault>,
        call: impl FnOnce(&mut World) -> T,
        fail: impl FnOnce(Failure) -> T,
    ) -> T {
        self.take_turns().await;
        let fault = own.or_else(|| self.world().faults.pop_front()).unwrap_or(Fault::None);
        match fault {
            Fault::None => call(&mut self.world()),
            Fault::Unavailable => fail(Failure::Unavailable),
            Fault::LostAnswer => {
                call(&mut self.world());
                fail(Failure::Unknown)
            }
            // Whoever is moved call by call has no clock of its own: the time limit is over.
            Fault::Hang if self.gait.is_some() => {
                self.world().now += SignedDuration::from_secs(5);
                fail(Failure::Unknown)
            }
            Fault::Hang => self.hang().await,
            Fault::CrashBefore => self.crash().await,
            Fault::CrashAfter => {
                call(&mut self.world());
                self.crash().await
            }
        }
    }

    fn see_rollout(&self, world: &World) -> Option<Versioned<Arc<Rollout>>> {
        let present = || (!world.gone).then(|| (world.rollout.clone(), world.rollout_version));
        let seen = self.seen(world, Kind::Rollout);
        let name = &world.rollout.metadata.name;
        let (value, number) = seen.map_or_else(present, |documents| documents.rollout(name))?;
        Some(Versioned { version: version(number), value: Arc::new(value) })
    }

    async fn hang<T>(&self) -> T {
        self.world().now += SignedDuration::from_secs(5);
        std::future::pending().await
    }

    async fn hang_where_it_does(&self) -> Result<(), ReadError> {
        let hangs = self.world().fleet_hangs;
        match (hangs, &self.gait) {
            (false, _) => Ok(()),
            (true, Some(_)) => Err(ReadError::Unavailable("no answer in time".to_owned())),
            (true, None) => std::future::pending().await,
        }
    }

    async fn crash<T>(&self) -> T {
        self.crash.notify_one();
        std::future::pending().await
    }

    /// What a person has to mend, where something is missing.
    fn refuse(&self, what: impl Fn(&Missing) -> Option<String>) -> Result<(), ReadError> {
        what(&self.world().missing).map_or(Ok(()), |why| Err(ReadError::Invalid(why)))
    }

    async fn read<T>(&self, call: impl FnOnce(&mut World) -> T) -> Result<T, ReadError> {
        self.meet(None, |world| Ok(call(world)), |_| Err(ReadError::Unavailable("simulated".to_owned()))).await
    }

    async fn write(&self, key: &RolloutKey, kind: Kind, call: impl FnOnce(&mut World) -> Written) -> Written {
        let fail = |failure| match failure {
            Failure::Unavailable => Written::Unavailable("simulated".to_owned()),
            // What is not known is read anew, and not from a cache.
            Failure::Unknown => {
                self.has_seen_all(&mut self.world(), kind);
                Written::Unknown("simulated".to_owned())
            }
        };
        let call = |world: &mut World| {
            let written = world.of(&key.name, call);
            if matches!(written, Written::Done(_)) {
                self.has_seen_all(world, kind);
            }
            written
        };
        let own = {
            let mut world = self.world();
            world.writes += 1;
            world.write_faults.pop_front()
        };
        self.meet(own, call, fail).await
    }
}

enum Failure {
    Unavailable,
    Unknown,
}

fn version(number: u64) -> Version {
    Version(number.to_string())
}

impl Clock for Sim {
    fn now(&self) -> Timestamp {
        self.world().now
    }
}

impl Store for Sim {
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
        self.read(|world| world.of_each(|world| self.see_rollout(world)).into_iter().flatten().collect()).await
    }

    async fn rollout(&self, key: &RolloutKey) -> Result<Option<Versioned<Arc<Rollout>>>, ReadError> {
        self.read(|world| world.of(&key.name, |world| self.see_rollout(world))).await
    }

    async fn rewrites(&self, _: &RolloutKey) -> Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError> {
        self.refuse(|missing| missing.rewrites.clone())?;
        self.read(|world| {
            let seen = self.seen(world, Kind::Rewrites).map(|documents| documents.rewrites.clone());
            let rewrites = seen.unwrap_or_else(|| world.rewrites.clone()).into_iter();
            rewrites.map(|(value, number)| Versioned { version: version(number), value: Arc::new(value) }).collect()
        })
        .await
    }

    async fn adapters(
        &self,
        _: &RolloutKey,
        reference: &AdaptersRef,
        at_least: Option<&Version>,
    ) -> Result<Option<Versioned<AdaptersDocument>>, ReadError> {
        self.refuse(|missing| missing.adapters_problem.clone())?;
        self.read(|world| {
            if reference.name != world.file_name {
                let unread = world.unread.get(&reference.name).cloned();
                return unread.map(|(value, number)| Versioned { version: version(number), value });
            }
            let mut seen = self.seen(world, Kind::Adapters).map(|documents| documents.adapters.clone());
            let at_least = at_least.and_then(|version| version.0.parse().ok()).unwrap_or_default();
            if seen.as_ref().is_some_and(|(_, number)| *number < at_least) {
                self.hear_all(world, Kind::Adapters);
                seen = self.seen(world, Kind::Adapters).map(|documents| documents.adapters.clone());
            }
            let (value, number) = seen.unwrap_or_else(|| (world.adapters.clone(), world.adapters_version));
            let found = Versioned { version: version(number), value };
            (!world.missing.adapters).then_some(found)
        })
        .await
    }

    async fn write_status(&self, key: &RolloutKey, read: &Version, status: &RolloutStatus) -> Written {
        self.write(key, Kind::Rollout, |world| {
            if *read != version(world.rollout_version) || world.gone {
                return Written::Stale;
            }
            if world.rollout.status.as_ref() == Some(status) {
                // As an API server does it.
                return Written::Done(version(world.rollout_version));
            }
            if world.status().phase != status.phase || world.status().message != status.message {
                world.note(format!("{:?}: {}", status.phase, status.message));
            }
            world.rollout.status = Some(status.clone());
            world.rollout_version = world.next_version();
            world.status_writes += 1;
            Written::Done(version(world.rollout_version))
        })
        .await
    }

    async fn write_rewrite(
        &self,
        key: &RolloutKey,
        rewrite: &InferenceModelRewrite,
        precondition: &Precondition,
    ) -> Written {
        self.write(key, Kind::Rewrites, |world| {
            if let Some(why) = &world.missing.permission {
                return Written::Refused(why.clone());
            }
            let name = &rewrite.metadata.name;
            let present = world.rewrites.iter().position(|(old, _)| old.metadata.name == *name);
            let number = world.next_version();
            let (mut rewrite, written) = (rewrite.clone(), rewrite);
            let others = world.share_of_other();
            match (present, precondition) {
                (None, Precondition::Absent) => {
                    rewrite.metadata.uid = Some(world.next_uid());
                    world.rewrites.push((rewrite, number));
                }
                (Some(index), Precondition::Unchanged(read)) if *read == version(world.rewrites[index].1) => {
                    world.rewrites[index] = (rewrite, number);
                }
                _ => return Written::Stale,
            }
            world.rewrites_changed();
            world.check_stamp(written);
            world.check_share_of_other(others);
            if let Some(rival) = world.rival {
                world.edit_rewrite(rival);
            }
            Written::Done(version(number))
        })
        .await
    }

    async fn write_adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        read: &Version,
        write: &AdaptersWrite,
    ) -> Written {
        self.write(key, Kind::Adapters, |world| {
            if world.unread.contains_key(&reference.name) {
                return world.write_unread(&reference.name, read, write);
            }
            if *read != version(world.adapters_version) {
                return Written::Stale;
            }
            let (before, others) = (world.adapters.clone(), world.share_of_other());
            let number = world.write_adapters(write.user_text.clone(), write.key_text.clone());
            let after = world.adapters.clone();
            world.of_each(|world| world.check_held(&before, &after));
            world.check_share_of_other(others);
            Written::Done(version(number))
        })
        .await
    }

    fn guards_deletion(&self) -> bool {
        true
    }

    async fn guard_deletion(&self, key: &RolloutKey, read: &Version, guarded: bool) -> Written {
        self.write(key, Kind::Rollout, |world| {
            if *read != version(world.rollout_version) || world.gone {
                return Written::Stale;
            }
            world.note(if guarded { "the Rollout is guarded" } else { "the Rollout is not guarded any more" });
            world.rollout.metadata.finalizers = guarded.then(|| FINALIZER.to_owned()).into_iter().collect();
            world.rollout_version = world.next_version();
            world.leave_if_free();
            Written::Done(version(world.rollout_version))
        })
        .await
    }

    async fn event(&self, key: &RolloutKey, event: &Event) {
        let mut world = self.world();
        world.note(format!("event {}: {}", event.reason, event.message));
        world.of(&key.name, |world| world.events.push(event.clone()));
    }
}

impl Fleet for Sim {
    async fn servers(&self, _: &RolloutKey, _: &PoolRef) -> Result<Heard<Server>, ReadError> {
        self.hang_where_it_does().await?;
        self.refuse(|missing| missing.pool.clone())?;
        self.read(|world| world.server_reports(false).into()).await
    }

    async fn sharers(&self, _: &RolloutKey, _: &PoolRef, _: &AdaptersRef) -> Result<Heard<Server>, ReadError> {
        self.hang_where_it_does().await?;
        self.read(|world| world.server_reports(true).into()).await
    }

    async fn routers(&self, _: &RolloutKey, _: &PoolRef, _: &ModelName) -> Result<Heard<Router>, ReadError> {
        self.hang_where_it_does().await?;
        self.read(|world| world.router_reports().into()).await
    }
}
