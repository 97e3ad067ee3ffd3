//! Nothing is left of an API server whose test process was killed.

use super::{run_with_runtime, wait_for};
use anyhow::{Context as _, Result};
use rollora_testbed::control_plane::ControlPlane;
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const CHILD_OUTPUT_VARIABLE: &str = "ROLLORA_TEST_OF_CONTROL_PLANE";

/// Runs itself as a process of its own, which starts an API server and is then killed.
#[test]
fn an_api_server_ends_with_a_process_that_was_killed_and_leaves_no_files() -> Result<()> {
    run_with_runtime(async || {
        if let Some(note) = std::env::var_os(CHILD_OUTPUT_VARIABLE).map(PathBuf::from) {
            let plane = ControlPlane::shared().await?;
            let folder = plane.admin_kubeconfig();
            let words = format!("{}\n{}", plane.url(), folder.parent().context("no folder")?.display());
            fs::write(note.with_extension("new"), words)?;
            fs::rename(note.with_extension("new"), &note)?;
            return std::future::pending().await;
        }
        let folder = tempfile::tempdir()?;
        let note = folder.path().join("note");
        let mut itself = Command::new(std::env::current_exe()?);
        itself.args(["--exact", "end::an_api_server_ends_with_a_process_that_was_killed_and_leaves_no_files"]);
        let mut itself = itself.env(CHILD_OUTPUT_VARIABLE, &note).stdout(Stdio::null()).spawn()?;
        wait_for("it has started one", async || Ok(note.exists())).await?;
        let words = fs::read_to_string(&note)?;
        let (url, files) = words.split_once('\n').context("two lines")?;
        let address = url.strip_prefix("https://").context("a URL")?.to_owned();
        assert!(TcpListener::bind(&address).is_err() && Path::new(files).is_dir());
        itself.kill()?;
        itself.wait()?;
        wait_for("its port is free and its files are gone", async || {
            Ok(TcpListener::bind(&address).is_ok() && !Path::new(files).exists())
        })
        .await
    })
}
