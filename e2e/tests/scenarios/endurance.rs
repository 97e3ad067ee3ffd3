//! Many rollouts, each with something that dies at a random moment, in some of them with a person who aborts or wants it all
//! at once, clients sending without pause.
//!
//! A run is ten rollouts one after the other on one bed; its seed says what dies, when, for how long, and who acts. Several runs go
//! on side by side. `ROLLORA_ROLLOUTS` says how many rollouts there are in the long schedule (1,000 on one machine and 100
//! on a cluster where it says nothing), `ROLLORA_FIRST_SEED` where the seeds begin.

use crate::steps::{Victim, own_plane, short_lease};
use crate::{
    chain::{PATIENCE, ends, never_backwards, over, version},
    numbers::{Sum, say},
};
use anyhow::Result;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rollora_e2e::{
    bed::{Bed, Place, Setup},
    judge::Verdict,
    machine::Machine,
    scenario::{long, on},
    seen::{Condition, every_server_is_ready, loaded_everywhere, served_by},
    traffic::Crowd,
};
use rollora_e2e::{
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, on_a_cluster},
};
use rollora_testbed::guide::MODEL;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// How many rollouts one bed sees.
const CHAIN: usize = 10;

/// What a place can suffer.
trait Suffers: Place {
    /// Something of it dies, and comes back; what, in words.
    async fn suffers(bed: &mut Bed<Self>, random: &mut StdRng) -> Result<&'static str>;
}

impl Suffers for Machine {
    async fn suffers(bed: &mut Bed<Self>, random: &mut StdRng) -> Result<&'static str> {
        let away = Duration::from_millis(random.random_range(0..300));
        if random.random_bool(0.5) {
            bed.kill_operator();
            tokio::time::sleep(away).await;
            bed.start_operator().await?;
            Ok("rollora local")
        } else {
            let index = random.random_range(0..bed.place.servers().len());
            bed.kill_server(index);
            // The simulator would be back before anybody could notice; vLLM takes much longer to start.
            bed.sees(is_known_to_be_dead(index)).await?;
            tokio::time::sleep(away).await;
            bed.start_server(index).await?;
            Ok("server")
        }
    }
}

/// No more requests are sent to this server.
fn is_known_to_be_dead(index: usize) -> Condition {
    Condition::new(format!("server {index} is known to be dead"), move |seen| {
        seen.servers.get(index).is_some_and(|server| !server.ready)
    })
}

impl Suffers for Cluster {
    async fn suffers(bed: &mut Bed<Self>, random: &mut StdRng) -> Result<&'static str> {
        let away = Duration::from_millis(random.random_range(0..1500));
        let (victim, words) = match random.random_range(0..11) {
            // Only in the long schedule does a bed have an API server of its own.
            3..6 if !long() => (Victim::Operator, "operator"),
            0..3 => (Victim::Operator, "operator"),
            3..5 => (Victim::FrozenApiServer, "API server stands still"),
            5 => (Victim::ApiServer, "API server"),
            6..8 => (Victim::ExtProc(random.random_range(0..2)), "ext-proc"),
            8..10 => (Victim::Server(random.random_range(0..3)), "server"),
            _ => (Victim::Sidecar(random.random_range(0..3)), "sidecar"),
        };
        victim.dies(bed, away).await?;
        Ok(words)
    }
}

/// What a run came to.
struct Ran {
    verdict: Verdict,
    retries: usize,
    died: Vec<&'static str>,
    acts: Vec<&'static str>,
}

const ABORT: &str = "abort";

/// In one of four rollouts a person wants something else than the steps. Whether that is done depends on how far the
/// rollout is, and on who is dead.
async fn a_person_acts<P: Place>(bed: &Bed<P>, random: &mut StdRng) -> Result<Option<&'static str>> {
    let (what, command) = match random.random_range(0..8) {
        0 => (ABORT, [ABORT].as_slice()),
        1 => ("promote --full", ["promote", "--full"].as_slice()),
        _ => return Ok(None),
    };
    tokio::time::sleep(Duration::from_millis(random.random_range(0..800))).await;
    bed.place.say(command).await?;
    Ok(Some(what))
}

/// So many rollouts one after the other; while each goes on, something dies once or twice.
async fn a_run<P: Suffers>(bed: &mut Bed<P>, seed: u64, rollouts: usize) -> Result<Ran> {
    let mut random = StdRng::seed_from_u64(seed);
    bed.sees_within(PATIENCE, over_v1()).await?;
    bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(15)));
    let (mut retries, mut died, mut acts) = (0, Vec::new(), Vec::new());
    for number in 2..2 + rollouts {
        bed.list(&version(number)).await?;
        acts.extend(a_person_acts(bed, &mut random).await?);
        for _ in 0..random.random_range(1..=2) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
            died.push(P::suffers(bed, &mut random).await?);
        }
        retries += ends(bed, number).await?;
        bed.sees_within(PATIENCE, over(number).and(every_server_is_ready())).await?;
    }
    let record = bed.clients_saw_nothing_wrong().await?;
    if !acts.contains(&ABORT) {
        never_backwards(&record)?;
    }
    Ok(Ran { verdict: record.verdict(), retries, died, acts })
}

fn over_v1() -> Condition {
    served_by(MODEL, &version(1)).and(loaded_everywhere(&version(1))).and(every_server_is_ready())
}

/// How many rollouts, how many runs at a time, and where seeds begin.
struct Plan {
    rollouts: usize,
    side_by_side: usize,
    first_seed: u64,
}

impl Plan {
    fn wanted(in_the_long_schedule: usize, side_by_side: usize) -> Self {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        if long() {
            let rollouts = number("ROLLORA_ROLLOUTS").unwrap_or(in_the_long_schedule);
            let first_seed = number("ROLLORA_FIRST_SEED").unwrap_or(0) as u64;
            Self { rollouts, side_by_side, first_seed }
        } else {
            Self { rollouts: 2, side_by_side: 1, first_seed: 1 }
        }
    }
}

/// What all runs came to.
#[derive(Default)]
struct Total {
    requests: Sum,
    rollouts: usize,
    deaths: usize,
    acts: usize,
    retries: usize,
}

/// Runs one run for each seed; a run that fails fails the test, when all have ended.
fn runs(what: &str, plan: &Plan, run: impl Fn(u64, usize) -> Ran + Sync) {
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Total::default()));
    thread::scope(|scope| {
        for _ in 0..plan.side_by_side {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let rollouts = plan.rollouts.saturating_sub(index * CHAIN).min(CHAIN);
                    if rollouts == 0 {
                        return;
                    }
                    let seed = plan.first_seed + index as u64;
                    let ran = run(seed, rollouts);
                    say(&format!(
                        "{what}, seed {seed}: {rollouts} rollouts, {} deaths ({}), acts ({}), {} retries: {}",
                        ran.died.len(),
                        counted(&ran.died),
                        counted(&ran.acts),
                        ran.retries,
                        ran.verdict
                    ));
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.requests.add(ran.verdict);
                    sum.rollouts += rollouts;
                    sum.deaths += ran.died.len();
                    sum.acts += ran.acts.len();
                    sum.retries += ran.retries;
                }
            });
        }
    });
    let Total { requests, rollouts, deaths, acts, retries } = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    say(&format!("{what}: {rollouts} rollouts, {deaths} deaths, {acts} acts of a person, {retries} retries"));
    requests.say(what);
}

fn counted(died: &[&'static str]) -> String {
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    for what in died {
        *counts.entry(*what).or_default() += 1;
    }
    counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
}

fn setup() -> Setup {
    Setup::guide(Duration::from_millis(150))
}

#[test]
fn many_rollouts_on_one_machine_with_something_dying_in_each() {
    runs("on one machine", &Plan::wanted(1000, 4), |seed, rollouts| {
        let mut ran = None;
        on::<Machine>(&setup(), async |bed| {
            ran = Some(a_run(bed, seed, rollouts).await.map_err(|error| error.context(format!("seed {seed}")))?);
            Ok(())
        });
        ran.unwrap_or_else(|| unreachable!("a run that fails ends its thread"))
    });
}

#[test]
fn many_rollouts_on_a_cluster_with_something_dying_in_each() {
    if !has_a_cluster("many rollouts on a cluster") {
        return;
    }
    runs("on a cluster", &Plan::wanted(100, 2), |seed, rollouts| {
        let parts = async || {
            if long() { own_plane().await } else { Ok(Parts { change: Box::new(short_lease), ..Parts::default() }) }
        };
        let mut ran = None;
        on_a_cluster(&setup(), parts, async |bed| {
            ran = Some(a_run(bed, seed, rollouts).await.map_err(|error| error.context(format!("seed {seed}")))?);
            Ok(())
        });
        ran.unwrap_or_else(|| unreachable!("a run that fails ends its thread"))
    });
}
