//! The demo completes the guide, fits on one screen, and ends all its processes.

use anyhow::{Context as _, Result, ensure};
use rollora_testbed::process::{ChildProcess, ExitReason, built_program, wait_exit};
use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

/// Lines and columns that the whole output fits into.
const SCREEN_SIZE: (usize, usize) = (45, 100);

fn start_demo(folder: &Path, arguments: &[&str]) -> Result<ChildProcess> {
    let mut demo = Command::new(built_program("demo")?);
    demo.args(arguments);
    ChildProcess::start("demo", demo, folder)
}

/// What the demo prints of the guide in both environments.
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

fn check_output(output: &str, words: &[&str]) -> Result<()> {
    for words in words {
        ensure!(output.contains(words), "{words:?} is not in\n{output}");
    }
    ensure!(!output.contains('\u{1b}'), "colors although the output is not a terminal\n{output}");
    Ok(())
}

fn max_line_width(output: &str) -> usize {
    output.lines().map(|line| line.chars().count()).max().unwrap_or_default()
}

#[tokio::test]
async fn demo_prints_the_guide_on_one_screen() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let demo = start_demo(folder.path(), &[])?;
    let exit = wait_exit(&demo, Duration::from_secs(90)).await?;
    let output = demo.log();
    ensure!(exit == ExitReason::Exit(0), "the demo ended with {exit:?}\n{output}");
    check_output(&output, &GUIDE_OUTPUT)?;
    let size = (output.lines().count(), max_line_width(&output));
    ensure!(size.0 <= SCREEN_SIZE.0 && size.1 <= SCREEN_SIZE.1, "{size:?} is more than {SCREEN_SIZE:?}\n{output}");
    Ok(())
}

#[tokio::test]
async fn interrupted_demo_ends_its_processes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let demo = start_demo(folder.path(), &["--keep"])?;
    let addresses = loop {
        let output = demo.log();
        let addresses: Vec<SocketAddr> =
            output.split_whitespace().filter_map(|word| word.trim_start_matches("http://").parse().ok()).collect();
        if output.contains("Step 2") {
            break addresses;
        }
        ensure!(demo.exit_reason().is_none(), "the demo ended\n{output}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(addresses.len() == 4, "expected three servers and a gateway: {addresses:?}");
    let listens = |address: &SocketAddr| TcpStream::connect(address).is_ok();
    ensure!(addresses.iter().all(listens), "not everything listens");
    demo.signal(rustix::process::Signal::INT);
    let exit = wait_exit(&demo, Duration::from_secs(10)).await.context("after Ctrl-C")?;
    ensure!(exit == ExitReason::Exit(130), "the demo ended with {exit:?}");
    ensure!(!addresses.iter().any(listens), "something still listens");
    Ok(())
}

mod cluster {
    use super::*;
    use rollora_e2e::scenario::cluster_tools_available;
    use std::{
        ffi::OsString,
        fs::{read_dir, read_link},
        path::PathBuf,
        time::Instant,
    };

    /// The width that `kubectl` needs for these names.
    const MAX_WIDTH: usize = 110;

    /// Starts a demo whose temporary files are all in one folder.
    fn start_cluster_demo(folder: &Path, arguments: &[&str]) -> Result<(ChildProcess, PathBuf)> {
        let temporary = folder.join("tmp");
        std::fs::create_dir(&temporary)?;
        let mut demo = Command::new(built_program("demo")?);
        demo.arg("--cluster").args(arguments).env("TMPDIR", &temporary);
        // `kubectl` keeps its cache there.
        demo.env("HOME", &temporary);
        Ok((ChildProcess::start("demo", demo, folder)?, temporary))
    }

    /// Returns the processes whose standard output is a file in the folder, which holds for every process of the demo.
    fn processes_writing_to(folder: &Path) -> Vec<OsString> {
        let all = read_dir("/proc").into_iter().flatten().flatten();
        let writes = |id: &OsString| {
            read_link(Path::new("/proc").join(id).join("fd/1")).is_ok_and(|output| output.starts_with(folder))
        };
        all.map(|entry| entry.file_name()).filter(writes).collect()
    }

    /// Waits until no process and no file is left, except the record of reserved ports, which all test processes share.
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
    async fn cluster_demo_prints_the_guide_and_cleans_up() -> Result<()> {
        if !cluster_tools_available("the demo on the parts of a cluster") {
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let (demo, temporary) = start_cluster_demo(folder.path(), &[])?;
        let exit = wait_exit(&demo, Duration::from_mins(3)).await?;
        let output = demo.log();
        ensure!(exit == ExitReason::Exit(0), "the demo ended with {exit:?}\n{output}");
        check_output(&output, &GUIDE_OUTPUT)?;
        check_output(
            &output,
            &["3 pods of vLLM", "Paused   1/5    10/100", "Succeeded   5/5    100/100", "(startup "],
        )?;
        ensure!(max_line_width(&output) <= MAX_WIDTH, "a line is longer than {MAX_WIDTH}\n{output}");
        wait_until_clean(&temporary).await
    }

    #[tokio::test]
    async fn interrupted_cluster_demo_ends_its_processes() -> Result<()> {
        if !cluster_tools_available("the end of the demo on the parts of a cluster") {
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let (demo, temporary) = start_cluster_demo(folder.path(), &["--keep"])?;
        while !demo.log().contains("Step 1") {
            ensure!(demo.exit_reason().is_none(), "the demo ended\n{}", demo.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // etcd, the API server, Envoy, three servers and their sidecars, the operator, two replicas of ext-proc.
        let running = processes_writing_to(&temporary).len();
        ensure!(running >= 12, "only {running} processes run\n{}", demo.log());
        demo.signal(rustix::process::Signal::INT);
        let exit = wait_exit(&demo, Duration::from_secs(10)).await.context("after Ctrl-C")?;
        ensure!(exit == ExitReason::Exit(130), "the demo ended with {exit:?}");
        wait_until_clean(&temporary).await
    }
}
