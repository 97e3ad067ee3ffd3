//! The demo is a promise too.

use anyhow::{Context as _, Result, ensure};
use rollora_testbed::process::{ChildProcess, ExitReason, built_program, wait_exit};
use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

/// Everything that it writes fits on one screen.
const SCREEN_SIZE: (usize, usize) = (45, 100);

fn start_demo(folder: &Path, arguments: &[&str]) -> Result<ChildProcess> {
    let mut demo = Command::new(built_program("demo")?);
    demo.args(arguments);
    ChildProcess::start("demo", demo, folder)
}

/// What it tells of the guide, wherever that happens.
const GUIDE_OUTPUT: [&str; 8] = [
    "small-segment-lora-v1: 20 requests",
    "90 / 10",
    "50 / 50",
    "0 / 100",
    "small-segment-lora-v2: 20 requests",
    "ensureNotExist:",
    "is gone from /v1/models of every server",
    " 0 errors",
];

fn check_output(told: &str, words: &[&str]) -> Result<()> {
    for words in words {
        ensure!(told.contains(words), "{words:?} is not in\n{told}");
    }
    ensure!(!told.contains('\u{1b}'), "colors where no terminal is\n{told}");
    Ok(())
}

fn max_line_width(told: &str) -> usize {
    told.lines().map(|line| line.chars().count()).max().unwrap_or_default()
}

#[tokio::test]
async fn the_demo_tells_the_guide_on_one_screen_and_ends_well() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let demo = start_demo(folder.path(), &[])?;
    let ending = wait_exit(&demo, Duration::from_secs(90)).await?;
    let told = demo.log();
    ensure!(ending == ExitReason::Exit(0), "it ended with {ending:?}\n{told}");
    check_output(&told, &GUIDE_OUTPUT)?;
    let size = (told.lines().count(), max_line_width(&told));
    ensure!(size.0 <= SCREEN_SIZE.0 && size.1 <= SCREEN_SIZE.1, "{size:?} is more than {SCREEN_SIZE:?}\n{told}");
    Ok(())
}

#[tokio::test]
async fn the_demo_takes_everything_with_it_when_it_is_interrupted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let demo = start_demo(folder.path(), &["--keep"])?;
    let addresses = loop {
        let told = demo.log();
        let addresses: Vec<SocketAddr> =
            told.split_whitespace().filter_map(|word| word.trim_start_matches("http://").parse().ok()).collect();
        if told.contains("Step 2") {
            break addresses;
        }
        ensure!(demo.exit_reason().is_none(), "it ended\n{told}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(addresses.len() == 4, "three servers and a gateway are named: {addresses:?}");
    let listens = |address: &SocketAddr| TcpStream::connect(address).is_ok();
    ensure!(addresses.iter().all(listens), "not everything listens");
    demo.signal(rustix::process::Signal::INT);
    let ending = wait_exit(&demo, Duration::from_secs(10)).await.context("after Ctrl-C")?;
    ensure!(ending == ExitReason::Exit(130), "it ended with {ending:?}");
    ensure!(!addresses.iter().any(listens), "something still listens");
    Ok(())
}

mod on_a_cluster {
    use super::*;
    use rollora_e2e::scenario::cluster_tools_available;
    use std::{
        ffi::OsString,
        fs::{read_dir, read_link},
        path::PathBuf,
        time::Instant,
    };

    /// As wide as `kubectl` writes these names.
    const MAX_WIDTH: usize = 110;

    /// A demo whose temporary files are all in one folder.
    fn start_cluster_demo(folder: &Path, arguments: &[&str]) -> Result<(ChildProcess, PathBuf)> {
        let temporary = folder.join("tmp");
        std::fs::create_dir(&temporary)?;
        let mut demo = Command::new(built_program("demo")?);
        demo.arg("--cluster").args(arguments).env("TMPDIR", &temporary);
        // Where `kubectl` would leave what it remembers.
        demo.env("HOME", &temporary);
        Ok((ChildProcess::start("demo", demo, folder)?, temporary))
    }

    /// The processes that write their output into the folder: every one of the bed does.
    fn processes_writing_to(folder: &Path) -> Vec<OsString> {
        let all = read_dir("/proc").into_iter().flatten().flatten();
        let writes = |id: &OsString| {
            read_link(Path::new("/proc").join(id).join("fd/1")).is_ok_and(|output| output.starts_with(folder))
        };
        all.map(|entry| entry.file_name()).filter(writes).collect()
    }

    /// Nothing is left but the note of which ports are taken, which all beds of a user share.
    async fn wait_until_clean(temporary: &Path) -> Result<()> {
        let files = || -> Result<Vec<OsString>> {
            let all = read_dir(temporary)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
            Ok(all.into_iter().filter(|name| !name.to_string_lossy().starts_with("rollora-ports-")).collect())
        };
        let start = now();
        loop {
            let (files, writers) = (files()?, processes_writing_to(temporary));
            if files.is_empty() && writers.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < Duration::from_secs(5), "left behind: {files:?}, the processes {writers:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test waits in real time")]
    fn now() -> Instant {
        Instant::now()
    }

    #[tokio::test]
    async fn the_demo_tells_the_guide_on_the_parts_of_a_cluster_and_leaves_nothing_behind() -> Result<()> {
        if !cluster_tools_available("the demo on the parts of a cluster") {
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let (demo, temporary) = start_cluster_demo(folder.path(), &[])?;
        let ending = wait_exit(&demo, Duration::from_mins(3)).await?;
        let told = demo.log();
        ensure!(ending == ExitReason::Exit(0), "it ended with {ending:?}\n{told}");
        check_output(&told, &GUIDE_OUTPUT)?;
        check_output(
            &told,
            &["3 pods of vLLM", "Paused   1/5    10/100", "Succeeded   5/5    100/100", "(the bed in "],
        )?;
        ensure!(max_line_width(&told) <= MAX_WIDTH, "a line is longer than {MAX_WIDTH}\n{told}");
        wait_until_clean(&temporary).await
    }

    #[tokio::test]
    async fn the_demo_takes_the_parts_of_a_cluster_with_it_when_it_is_interrupted() -> Result<()> {
        if !cluster_tools_available("the end of the demo on the parts of a cluster") {
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let (demo, temporary) = start_cluster_demo(folder.path(), &["--keep"])?;
        while !demo.log().contains("Step 1") {
            ensure!(demo.exit_reason().is_none(), "it ended\n{}", demo.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // etcd, the API server, Envoy, three servers and their sidecars, the operator, two replicas of ext-proc.
        let running = processes_writing_to(&temporary).len();
        ensure!(running >= 12, "only {running} processes run\n{}", demo.log());
        demo.signal(rustix::process::Signal::INT);
        let ending = wait_exit(&demo, Duration::from_secs(10)).await.context("after Ctrl-C")?;
        ensure!(ending == ExitReason::Exit(130), "it ended with {ending:?}");
        wait_until_clean(&temporary).await
    }
}
