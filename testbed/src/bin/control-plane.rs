//! Runs the testbed's API server as a process, with Rollora's and upstream's CRDs installed, for callers without an
//! async runtime (the benches) and for manual experiments.
//!
//! When the API server is ready, the program writes one line to standard output: the path of the admin's kubeconfig. It
//! exits on SIGTERM or when its standard input closes, and takes the API server and etcd with it.

use std::io::{self, Read as _, Write as _};
use std::thread;

use anyhow::Result;
use rollora_testbed::control_plane::{ControlPlane, rollora_crds, upstream_crds};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let parent_gone = CancellationToken::new();
    let token = parent_gone.clone();
    // Reading standard input blocks, so it has a thread of its own; the thread dies with the process.
    thread::spawn(move || {
        let mut ignored = [0; 64];
        while matches!(io::stdin().read(&mut ignored), Ok(1..)) {}
        token.cancel();
    });
    let plane = ControlPlane::start().await?;
    plane.install_crds(&[rollora_crds()?, upstream_crds()?].concat()).await?;
    writeln!(io::stdout(), "{}", plane.admin_kubeconfig().display())?;
    tokio::select! {
        _ = terminate.recv() => {}
        () = parent_gone.cancelled() => {}
    }
    Ok(())
}
