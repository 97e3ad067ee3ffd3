//! The real API server of the cluster bed as a process, with our custom resource and upstream's: for whoever is not in
//! Rust's async world, as the benches, and for trying things by hand.
//!
//! Standard output gets one line, the path of the admin's kubeconfig, when it is ready. It ends with its standard
//! input, and so do its parts.

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
    // On a thread of its own, which the end of the process ends: reading standard input blocks.
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
