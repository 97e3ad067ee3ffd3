//! The real API server of the cluster bed as a process, with our custom resource and upstream's: for benches and for
//! trying things by hand.
//!
//! Standard output gets one line when it serves: the file that tells how to reach it (a kubeconfig of somebody who may do
//! everything). It ends with standard input, so that it does not outlive the program that started it.

use anyhow::{Context as _, Result};
use rollora_e2e::cluster::control_plane::{ControlPlane, ours, upstream};
use std::io::{self, Write as _};
use tokio::io::AsyncReadExt as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let plane = ControlPlane::start().await?;
    plane.install(&[ours()?, upstream()?].concat()).await?;
    writeln!(io::stdout(), "{}", plane.admin_kubeconfig().display())?;
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    while input.read(&mut ignored).await.context("cannot read standard input")? > 0 {}
    Ok(())
}
