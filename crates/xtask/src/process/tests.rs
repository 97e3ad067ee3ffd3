use std::io::{Read as _, Seek as _};

use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn output_of_a_quiet_command_goes_to_its_log() {
    let mut log = tempfile::tempfile().unwrap();
    run_quiet(&mut shell("echo out; echo err >&2"), &log, Duration::from_secs(20), |_| {}).unwrap();
    let mut text = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "out\nerr\n");
}

#[test]
fn failed_quiet_command_reports_its_exit_code() {
    let log = tempfile::tempfile().unwrap();
    let error = run_quiet(&mut shell("exit 3"), &log, Duration::from_secs(20), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "the command failed with exit code 3");
}

#[test]
fn timed_out_quiet_command_is_killed_with_its_children() {
    let log = tempfile::tempfile().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
    let error = run_quiet(&mut shell(&script), &log, Duration::from_secs(1), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "the command did not finish within 1.0 s");
    let grandchild: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    let start = clock::now();
    // The grandchild cannot be reaped here: it disappears when its new parent has done so.
    while rustix::process::test_kill_process(Pid::from_raw(grandchild).unwrap()).is_ok() {
        assert!(is_zombie(grandchild) || start.elapsed() < Duration::from_secs(10), "the grandchild is still running");
        if is_zombie(grandchild) {
            break;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

#[test]
fn command_is_formatted_as_typed() {
    assert_eq!(format_command(Command::new("/opt/bin/cargo").args(["fmt", "--check"])), "cargo fmt --check");
}

#[test]
fn missing_program_has_no_output() {
    assert_eq!(output_of(&mut Command::new("rollora-no-such-program")), None);
    assert_eq!(output_of(&mut shell("echo yes")), Some("yes".to_owned()));
}
