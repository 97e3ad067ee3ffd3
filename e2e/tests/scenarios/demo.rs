//! The demo is a promise too.

use anyhow::{Context as _, Result, ensure};
use rollora_e2e::process::{Ending, Process, program};
use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

/// Everything that it writes fits on one screen.
const SCREEN: (usize, usize) = (45, 100);

fn start(folder: &std::path::Path, arguments: &[&str]) -> Result<Process> {
    let mut demo = Command::new(program("demo", "rollora-e2e")?);
    demo.args(arguments);
    Process::start("demo", demo, folder)
}

#[tokio::test]
async fn the_demo_tells_the_guide_on_one_screen_and_ends_well() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let demo = start(folder.path(), &[])?;
    let ending = demo.end_within(Duration::from_secs(90)).await?;
    let told = demo.log();
    ensure!(ending == Ending::Exit(0), "it ended with {ending:?}\n{told}");
    for words in [
        "small-segment-lora-v1: 20 requests",
        "90 / 10",
        "50 / 50",
        "0 / 100",
        "small-segment-lora-v2: 20 requests",
        "+       ensureNotExist:",
        "is gone from /v1/models of every server",
        " 0 errors",
    ] {
        ensure!(told.contains(words), "{words:?} is not in\n{told}");
    }
    let widest = told.lines().map(|line| line.chars().count()).max().unwrap_or_default();
    let size = (told.lines().count(), widest);
    ensure!(size.0 <= SCREEN.0 && size.1 <= SCREEN.1, "{size:?} is more than {SCREEN:?}\n{told}");
    ensure!(!told.contains('\u{1b}'), "colors where no terminal is\n{told}");
    Ok(())
}

#[tokio::test]
async fn the_demo_takes_everything_with_it_when_it_is_interrupted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let demo = start(folder.path(), &["--keep"])?;
    let addresses = loop {
        let told = demo.log();
        let addresses: Vec<SocketAddr> =
            told.split_whitespace().filter_map(|word| word.trim_start_matches("http://").parse().ok()).collect();
        if told.contains("Step 2") {
            break addresses;
        }
        ensure!(demo.ended().is_none(), "it ended\n{told}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(addresses.len() == 4, "three servers and a gateway are named: {addresses:?}");
    let listens = |address: &SocketAddr| TcpStream::connect(address).is_ok();
    ensure!(addresses.iter().all(listens), "not everything listens");
    demo.signal(rustix::process::Signal::INT);
    let ending = demo.end_within(Duration::from_secs(10)).await.context("after Ctrl-C")?;
    ensure!(ending == Ending::Exit(130), "it ended with {ending:?}");
    ensure!(!addresses.iter().any(listens), "something still listens");
    Ok(())
}
