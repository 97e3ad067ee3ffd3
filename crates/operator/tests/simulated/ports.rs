//! The two ports over the simulated world. Every call first meets the next fault.

use crate::world::{Fault, Missing, World};
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
        AdaptersDocument, AdaptersWrite, Event, Fleet, Precondition, ReadError, RolloutKey, Router, Server, Store,
        Version, Versioned, Written,
    },
};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// A shared world.
#[derive(Debug, Clone)]
pub(crate) struct Sim {
    world: Arc<Mutex<World>>,
    /// Tells that the operator has to die now.
    pub(crate) crash: Arc<Notify>,
}

impl Sim {
    pub(crate) fn new(world: World) -> Self {
        Self { world: Arc::new(Mutex::new(world)), crash: Arc::default() }
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
        let fault = own.or_else(|| self.world().faults.pop_front()).unwrap_or(Fault::None);
        match fault {
            Fault::None => call(&mut self.world()),
            Fault::Unavailable => fail(Failure::Unavailable),
            Fault::LostAnswer => {
                call(&mut self.world());
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

    async fn hang<T>(&self) -> T {
        self.world().now += SignedDuration::from_secs(5);
        std::future::pending().await
    }

    async fn crash<T>(&self) -> T {
        self.crash.notify_one();
        std::future::pending().await
    }

    /// What a person has to mend, where something is missing.
    fn refuse(&self, what: impl Fn(&Missing) -> Option<String>) -> Result<(), ReadError> {
        what(&self.world().missing).map_or(Ok(()), |why| Err(ReadError::Invalid(why)))
    }

    async fn read<T>(&self, call: impl FnOnce(&World) -> T) -> Result<T, ReadError> {
        self.meet(None, |world| Ok(call(world)), |_| Err(ReadError::Unavailable("simulated".to_owned()))).await
    }

    async fn write(&self, call: impl FnOnce(&mut World) -> Written) -> Written {
        let fail = |failure| match failure {
            Failure::Unavailable => Written::Unavailable("simulated".to_owned()),
            Failure::Unknown => Written::Unknown("simulated".to_owned()),
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

    async fn rollouts(&self) -> Result<Vec<Versioned<Rollout>>, ReadError> {
        self.read(|world| {
            let found = Versioned { version: version(world.rollout_version), value: world.rollout.clone() };
            (!world.gone).then_some(found).into_iter().collect()
        })
        .await
    }

    async fn rollout(&self, _: &RolloutKey) -> Result<Option<Versioned<Rollout>>, ReadError> {
        self.read(|world| {
            let found = Versioned { version: version(world.rollout_version), value: world.rollout.clone() };
            (!world.gone).then_some(found)
        })
        .await
    }

    async fn rewrites(&self, _: &RolloutKey) -> Result<Vec<Versioned<InferenceModelRewrite>>, ReadError> {
        self.refuse(|missing| missing.rewrites.clone())?;
        self.read(|world| {
            let rewrites = world.rewrites.iter().cloned();
            rewrites.map(|(value, number)| Versioned { version: version(number), value }).collect()
        })
        .await
    }

    async fn adapters(
        &self,
        _: &RolloutKey,
        _: &AdaptersRef,
    ) -> Result<Option<Versioned<AdaptersDocument>>, ReadError> {
        self.refuse(|missing| missing.adapters_problem.clone())?;
        self.read(|world| {
            let found = Versioned { version: version(world.adapters_version), value: world.adapters.clone() };
            (!world.missing.adapters).then_some(found)
        })
        .await
    }

    async fn write_status(&self, _: &RolloutKey, read: &Version, status: &RolloutStatus) -> Written {
        self.write(|world| {
            if *read != version(world.rollout_version) || world.gone {
                return Written::Stale;
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
        _: &RolloutKey,
        rewrite: &InferenceModelRewrite,
        precondition: &Precondition,
    ) -> Written {
        self.write(|world| {
            if let Some(why) = &world.missing.permission {
                return Written::Refused(why.clone());
            }
            let name = &rewrite.metadata.name;
            let present = world.rewrites.iter().position(|(old, _)| old.metadata.name == *name);
            let number = world.next_version();
            let mut rewrite = rewrite.clone();
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
            Written::Done(version(number))
        })
        .await
    }

    async fn write_adapters(&self, _: &RolloutKey, _: &AdaptersRef, read: &Version, write: &AdaptersWrite) -> Written {
        self.write(|world| {
            if *read != version(world.adapters_version) {
                return Written::Stale;
            }
            let number = world.write_adapters(write.user_text.clone(), write.key_text.clone());
            Written::Done(version(number))
        })
        .await
    }

    fn guards_deletion(&self) -> bool {
        true
    }

    async fn guard_deletion(&self, _: &RolloutKey, read: &Version, guarded: bool) -> Written {
        self.write(|world| {
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

    async fn event(&self, _: &RolloutKey, event: &Event) {
        let mut world = self.world();
        world.note(format!("event {}: {}", event.reason, event.message));
        world.events.push(event.clone());
    }
}

impl Fleet for Sim {
    async fn servers(&self, _: &RolloutKey, _: &PoolRef) -> Result<Vec<Server>, ReadError> {
        if self.world().fleet_hangs {
            return std::future::pending().await;
        }
        self.refuse(|missing| missing.pool.clone())?;
        self.read(|world| world.servers.iter().map(crate::server::SimServer::report).collect()).await
    }

    async fn routers(&self, _: &RolloutKey, _: &PoolRef, _: &ModelName) -> Result<Vec<Router>, ReadError> {
        if self.world().fleet_hangs {
            return std::future::pending().await;
        }
        self.read(World::router_reports).await
    }
}
