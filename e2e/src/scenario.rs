//! Runs one scenario as a test: on one machine, on the parts of a cluster, or in both environments from one text.

use crate::cluster::{ClusterEnvironment, ClusterOptions};
use crate::{
    harness::{Environment, Harness, Setup},
    local::LocalEnvironment,
};
use anyhow::{Context as _, Result};
use rollora_testbed::tools::{self, CONTROL_PLANE, ENVOY};

/// Makes two tests of a function that is generic over the environment: `NAME::local` and `NAME::cluster`.
///
/// ```
/// # use rollora_e2e::{harness::{Environment, Setup}, scenario::run_on};
/// rollora_e2e::in_both_environments!(v1_serves_everything);
///
/// fn v1_serves_everything<E: Environment>() {
///     let setup = Setup::guide(std::time::Duration::from_secs(1));
///     run_on::<E>(&setup, async |harness| harness.wait_for_baseline().await);
/// }
/// ```
#[macro_export]
macro_rules! in_both_environments {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            #[test]
            fn local() {
                super::$name::<$crate::local::LocalEnvironment>();
            }

            #[test]
            fn cluster() {
                if $crate::scenario::cluster_tools_available(concat!(module_path!(), "::cluster")) {
                    super::$name::<$crate::cluster::ClusterEnvironment>();
                }
            }
        }
    )+ };
}

/// Runs a scenario in the environment `E`.
///
/// # Panics
///
/// When the scenario fails; the message holds the error, the observed state and the logs.
pub fn run_on<E: Environment>(setup: &Setup, scenario: impl AsyncFnOnce(&mut Harness<E>) -> Result<()>) {
    run(async || Harness::start(setup).await, scenario);
}

/// Runs a scenario on one machine, against `rollora local`.
///
/// # Panics
///
/// When the scenario fails; the message holds the error, the observed state and the logs.
pub fn run_locally(setup: &Setup, scenario: impl AsyncFnOnce(&mut Harness<LocalEnvironment>) -> Result<()>) {
    run_on(setup, scenario);
}

/// Runs a scenario on the parts of a cluster; `options` may take some time to prepare them.
///
/// # Panics
///
/// When the scenario fails; the message holds the error, the observed state and the logs.
pub fn run_on_cluster(
    setup: &Setup,
    options: impl AsyncFnOnce() -> Result<ClusterOptions>,
    scenario: impl AsyncFnOnce(&mut Harness<ClusterEnvironment>) -> Result<()>,
) {
    let start = async || {
        let cluster = ClusterEnvironment::start_with(setup, options().await?).await?;
        Ok(Harness::on(cluster).with_key(setup.api_key.as_deref()))
    };
    run(start, scenario);
}

/// Returns whether the programs that a cluster consists of are available; prints that `what` is skipped if not.
pub fn cluster_tools_available(what: &str) -> bool {
    tools::all_available(&[CONTROL_PLANE, ENVOY], what)
}

#[expect(clippy::panic, reason = "this is how a test fails")]
fn run<E: Environment>(
    start: impl AsyncFnOnce() -> Result<Harness<E>>,
    scenario: impl AsyncFnOnce(&mut Harness<E>) -> Result<()>,
) {
    let result = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let mut harness = start().await?;
            let result = scenario(&mut harness).await;
            match result {
                Ok(()) => Ok(()),
                Err(error) => {
                    let snapshot = harness.environment.snapshot().await;
                    Err(error.context(harness.diagnostics(&snapshot).await))
                }
            }
        })
    });
    if let Err(error) = result {
        panic!("{error:?}");
    }
}

/// Returns whether `ROLLORA_LONG=1` asks for the repetitions and the long schedules.
pub fn long_tests_enabled() -> bool {
    std::env::var_os("ROLLORA_LONG").is_some_and(|value| value == "1")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start tokio")
}
