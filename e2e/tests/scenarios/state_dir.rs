//! The state folder: one process per folder, and one Rollout per process.

use anyhow::ensure;
use rollora_e2e::{
    conditions::served_by,
    harness::{Environment as _, Setup},
    rollora_local::{RolloraLocal, run_command},
    scenario::run_locally,
    traffic::LoadProfile,
};
use rollora_testbed::{
    guide::{MODEL, V1},
    process::ExitReason,
};
use std::time::Duration;

#[test]
fn second_process_on_a_state_folder_is_refused() {
    run_locally(&Setup::guide(Duration::from_millis(300)), async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        let first = harness.environment.rollora_local();
        let servers = ["http://127.0.0.1:9".to_owned()];
        let second = RolloraLocal::new(harness.environment.folder(), servers.to_vec(), None)?;
        let output = run_command(second.command()?).await?;
        ensure!(output.code != 0, "the second process was not refused: {output:?}");
        let words = ["another `rollora local`", &first.id().unwrap_or_default().to_string(), "--state"];
        ensure!(words.iter().all(|word| output.stderr.contains(word)), "{words:?} are not in {output:?}");

        harness.assert_holds_for(Duration::from_millis(500), served_by(MODEL, V1)).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn command_for_another_rollout_is_refused() {
    run_locally(&Setup::guide(Duration::from_millis(300)), async |harness| {
        harness.wait_for_baseline().await?;
        for verb in ["get", "status", "explain"] {
            harness.cli_stdout(&[verb, MODEL]).await?;
        }
        for verb in ["get", "status", "explain", "promote", "abort", "retry"] {
            let output = harness.environment.run_cli(&[verb, "another"]).await?;
            let words = [MODEL, "another", "--state"];
            let refused = output.code == 1 && words.iter().all(|word| output.stderr.contains(word));
            ensure!(refused, "`rollora {verb} another` ended with {output:?}");
        }
        Ok(())
    });
}

#[test]
fn sigterm_ends_the_process_with_exit_code_zero() {
    run_locally(&Setup::guide(Duration::from_millis(300)), async |harness| {
        harness.wait_for_baseline().await?;
        let exit = harness.environment.rollora_local_mut().terminate().await?;
        ensure!(exit == ExitReason::Exit(0), "the process ended with {exit:?}");
        Ok(())
    });
}
