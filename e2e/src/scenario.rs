//! Runs one scenario as a test: on one machine, on the parts of a cluster, or on both from one text.

use crate::cluster::{Cluster, Parts};
use crate::{
    bed::{Bed, Place, Setup},
    machine::Machine,
};
use anyhow::{Context as _, Result};
use rollora_testbed::tools::{self, CONTROL_PLANE, ENVOY};

/// Makes two tests of a function that is generic over the bed: `NAME::on_one_machine` and `NAME::on_a_cluster`.
///
/// ```
/// # use rollora_e2e::{bed::{Place, Setup}, scenario::on};
/// rollora_e2e::on_both_beds!(v1_serves_everything);
///
/// fn v1_serves_everything<P: Place>() {
///     on::<P>(&Setup::guide(std::time::Duration::from_secs(1)), async |bed| bed.sees_baseline().await);
/// }
/// ```
#[macro_export]
macro_rules! on_both_beds {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            #[test]
            fn on_one_machine() {
                super::$name::<$crate::machine::Machine>();
            }

            #[test]
            fn on_a_cluster() {
                if $crate::scenario::has_a_cluster(concat!(module_path!(), "::on_a_cluster")) {
                    super::$name::<$crate::cluster::Cluster>();
                }
            }
        }
    )+ };
}

/// Runs a scenario on a bed of this kind.
///
/// # Panics
///
/// When the scenario fails; the message is all there is to see.
pub fn on<P: Place>(setup: &Setup, scenario: impl AsyncFnOnce(&mut Bed<P>) -> Result<()>) {
    run(async || Bed::start(setup).await, scenario);
}

/// Runs a scenario on one machine.
///
/// # Panics
///
/// When the scenario fails; the message is all there is to see.
pub fn on_one_machine(setup: &Setup, scenario: impl AsyncFnOnce(&mut Bed<Machine>) -> Result<()>) {
    on(setup, scenario);
}

/// Runs a scenario on a cluster of parts that may need some time to prepare.
///
/// # Panics
///
/// When the scenario fails; the message is all there is to see.
pub fn on_a_cluster(
    setup: &Setup,
    parts: impl AsyncFnOnce() -> Result<Parts>,
    scenario: impl AsyncFnOnce(&mut Bed<Cluster>) -> Result<()>,
) {
    let start = async || {
        let cluster = Cluster::start_with(setup, parts().await?).await?;
        Ok(Bed::at(cluster).with_key(setup.api_key.as_deref()))
    };
    run(start, scenario);
}

/// Whether the programs are there that a cluster is made of; says what is skipped otherwise.
pub fn has_a_cluster(what: &str) -> bool {
    tools::all_available(&[CONTROL_PLANE, ENVOY], what)
}

#[expect(clippy::panic, reason = "this is how a test fails")]
fn run<P: Place>(start: impl AsyncFnOnce() -> Result<Bed<P>>, scenario: impl AsyncFnOnce(&mut Bed<P>) -> Result<()>) {
    let result = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let mut bed = start().await?;
            let result = scenario(&mut bed).await;
            match result {
                Ok(()) => Ok(()),
                Err(error) => {
                    let seen = bed.place.look().await;
                    Err(error.context(bed.evidence(&seen).await))
                }
            }
        })
    });
    if let Err(error) = result {
        panic!("{error:?}");
    }
}

/// Whether the repetitions and the long schedules are wanted.
pub fn long() -> bool {
    std::env::var_os("ROLLORA_LONG").is_some_and(|value| value == "1")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("no runtime")
}
