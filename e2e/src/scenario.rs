//! Runs one scenario as a test: on one machine, on the parts of a cluster, or on both from one text.

use crate::cluster::{ClusterEnvironment, ClusterOptions};
use crate::{
    harness::{Environment, Harness, Setup},
    local::LocalEnvironment,
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
                super::$name::<$crate::local::LocalEnvironment>();
            }

            #[test]
            fn on_a_cluster() {
                if $crate::scenario::cluster_tools_available(concat!(module_path!(), "::on_a_cluster")) {
                    super::$name::<$crate::cluster::ClusterEnvironment>();
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
pub fn run_on<P: Environment>(setup: &Setup, scenario: impl AsyncFnOnce(&mut Harness<P>) -> Result<()>) {
    run(async || Harness::start(setup).await, scenario);
}

/// Runs a scenario on one machine.
///
/// # Panics
///
/// When the scenario fails; the message is all there is to see.
pub fn run_locally(setup: &Setup, scenario: impl AsyncFnOnce(&mut Harness<LocalEnvironment>) -> Result<()>) {
    run_on(setup, scenario);
}

/// Runs a scenario on a cluster of parts that may need some time to prepare.
///
/// # Panics
///
/// When the scenario fails; the message is all there is to see.
pub fn run_on_cluster(
    setup: &Setup,
    parts: impl AsyncFnOnce() -> Result<ClusterOptions>,
    scenario: impl AsyncFnOnce(&mut Harness<ClusterEnvironment>) -> Result<()>,
) {
    let start = async || {
        let cluster = ClusterEnvironment::start_with(setup, parts().await?).await?;
        Ok(Harness::on(cluster).with_key(setup.api_key.as_deref()))
    };
    run(start, scenario);
}

/// Whether the programs are there that a cluster is made of; says what is skipped otherwise.
pub fn cluster_tools_available(what: &str) -> bool {
    tools::all_available(&[CONTROL_PLANE, ENVOY], what)
}

#[expect(clippy::panic, reason = "this is how a test fails")]
fn run<P: Environment>(
    start: impl AsyncFnOnce() -> Result<Harness<P>>,
    scenario: impl AsyncFnOnce(&mut Harness<P>) -> Result<()>,
) {
    let result = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let mut bed = start().await?;
            let result = scenario(&mut bed).await;
            match result {
                Ok(()) => Ok(()),
                Err(error) => {
                    let seen = bed.environment.snapshot().await;
                    Err(error.context(bed.diagnostics(&seen).await))
                }
            }
        })
    });
    if let Err(error) = result {
        panic!("{error:?}");
    }
}

/// Whether the repetitions and the long schedules are wanted.
pub fn long_tests_enabled() -> bool {
    std::env::var_os("ROLLORA_LONG").is_some_and(|value| value == "1")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("no runtime")
}
