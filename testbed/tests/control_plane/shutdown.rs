//! An API server leaves neither processes nor files behind when its test process is killed.

use super::{run_with_runtime, wait_for};
use anyhow::{Context as _, Result};
use rollora_testbed::control_plane::ControlPlane;
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const CHILD_OUTPUT_VARIABLE: &str = "ROLLORA_TEST_CHILD_OUTPUT";

/// Runs this test again in a process of its own, which starts an API server and is then killed.
#[test]
fn killed_process_leaves_no_api_server_and_no_files() -> Result<()> {
    run_with_runtime(async || {
        if let Some(output) = std::env::var_os(CHILD_OUTPUT_VARIABLE).map(PathBuf::from) {
            let plane = ControlPlane::shared().await?;
            let folder = plane.admin_kubeconfig();
            let lines =
                format!("{}\n{}", plane.url(), folder.parent().context("the kubeconfig has no folder")?.display());
            fs::write(output.with_extension("new"), lines)?;
            fs::rename(output.with_extension("new"), &output)?;
            return std::future::pending().await;
        }
        let folder = tempfile::tempdir()?;
        let output = folder.path().join("note");
        let mut itself = Command::new(std::env::current_exe()?);
        itself.args(["--exact", "shutdown::killed_process_leaves_no_api_server_and_no_files"]);
        let mut itself = itself.env(CHILD_OUTPUT_VARIABLE, &output).stdout(Stdio::null()).spawn()?;
        wait_for("the child to start an API server", async || Ok(output.exists())).await?;
        let lines = fs::read_to_string(&output)?;
        let (url, files) = lines.split_once('\n').context("the child's output has no second line")?;
        let address = url.strip_prefix("https://").context("the child's output does not begin with a URL")?.to_owned();
        assert!(TcpListener::bind(&address).is_err() && Path::new(files).is_dir());
        itself.kill()?;
        itself.wait()?;
        wait_for("the port and the files to be released", async || {
            Ok(TcpListener::bind(&address).is_ok() && !Path::new(files).exists())
        })
        .await
    })
}
