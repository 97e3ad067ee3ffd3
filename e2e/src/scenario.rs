//! Runs one scenario as a test.

use crate::{
    bed::{Bed, Place as _, Setup},
    machine::Machine,
};
use anyhow::{Context as _, Result};

/// Runs a scenario on one machine.
///
/// # Panics
///
/// When the scenario fails; the message is all there is to see.
#[expect(clippy::panic, reason = "this is how a test fails")]
pub fn on_one_machine(setup: &Setup, scenario: impl AsyncFnOnce(&mut Bed<Machine>) -> Result<()>) {
    let result = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let mut bed = Bed::start(setup).await?;
            let result = scenario(&mut bed).await;
            match result {
                Ok(()) => Ok(()),
                Err(error) => {
                    let seen = bed.place.look().await;
                    Err(error.context(bed.evidence(&seen)))
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
