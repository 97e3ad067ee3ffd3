//! The testbed's API server: it rejects what it should, authenticates its clients, logs their requests, and keeps its
//! data across a restart.

mod access;
mod definitions;
mod manifests;
mod outage;
mod shutdown;

use anyhow::{Result, bail};
use rollora_testbed::{
    control_plane::ControlPlane,
    tools::{CONTROL_PLANE, all_available},
};
use std::time::{Duration, Instant};

const WAIT_TIMEOUT: Duration = Duration::from_mins(2);

/// Runs a test on the API server that all tests of this process share, in a namespace of its own.
fn on_shared_control_plane(test: impl AsyncFnOnce(&ControlPlane, &str) -> Result<()>) -> Result<()> {
    run_with_runtime(async || {
        let plane = ControlPlane::shared().await?;
        let namespace = plane.create_namespace("test").await?;
        test(plane, &namespace).await
    })
}

/// Runs a test that starts its own API server, if it needs one.
fn run_with_runtime(test: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    if !all_available(&[CONTROL_PLANE], "a test of the API server") {
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test())
}

/// Waits until a condition holds; an error after 20 seconds.
async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = now();
    while !holds().await? {
        anyhow::ensure!(start.elapsed() < WAIT_TIMEOUT, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a test waits in real time")]
fn now() -> Instant {
    Instant::now()
}

/// Returns code and message of an API error; any other result is an error.
fn expect_api_error<T: std::fmt::Debug>(response: kube::Result<T>) -> Result<(u16, String)> {
    match response {
        Err(kube::Error::Api(status)) => Ok((status.code, status.message.clone())),
        other => bail!("expected an error of the API server, got {other:?}"),
    }
}
