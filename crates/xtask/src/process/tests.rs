use std::io::{Read as _, Seek as _};

use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn output_of_a_quiet_command_is_in_its_log() {
    let mut log = tempfile::tempfile().unwrap();
    run_quiet(&mut shell("echo out; echo err >&2"), &log, Duration::from_secs(20), |_| {}).unwrap();
    let mut text = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "out\nerr\n");
}

#[test]
fn a_quiet_command_that_fails_says_how_it_ended() {
    let log = tempfile::tempfile().unwrap();
    let error = run_quiet(&mut shell("exit 3"), &log, Duration::from_secs(20), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "it ended with exit code 3");
}

#[test]
fn a_quiet_command_is_ended_with_its_children_when_its_time_is_over() {
    let log = tempfile::tempfile().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
    let error = run_quiet(&mut shell(&script), &log, Duration::from_secs(1), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "it was not done after 1.0 s");
    let grandchild: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    let start = clock::now();
    // The grandchild is not ours to reap: it is gone when whoever adopted it has done so.
    while rustix::process::test_kill_process(Pid::from_raw(grandchild).unwrap()).is_ok() {
        assert!(is_zombie(grandchild) || start.elapsed() < Duration::from_secs(10), "the grandchild still runs");
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
fn a_command_reads_as_it_would_be_typed() {
    assert_eq!(format_command(Command::new("/opt/bin/cargo").args(["fmt", "--check"])), "cargo fmt --check");
}

#[test]
fn the_output_of_a_command_that_is_not_there_is_none() {
    assert_eq!(output_of(&mut Command::new("rollora-no-such-program")), None);
    assert_eq!(output_of(&mut shell("echo yes")), Some("yes".to_owned()));
}
