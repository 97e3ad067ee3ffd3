//! `cargo xtask fuzz`: runs the router's harnesses under a coverage-guided fuzzer.
//!
//! libFuzzer comes as a crate and is compiled from its C++ source. The instrumentation of the Rust code needs only code
//! generation flags of the pinned compiler: neither nightly nor cargo-fuzz is required. (Nightly would add the address
//! sanitizer, which has nothing to check here because there is no `unsafe`.)

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace::root};

const TARGETS: [&str; 3] = ["splice", "restore", "exchange"];

/// Instruments every edge and every comparison for the fuzzer.
const COVERAGE_FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// Longer inputs only take longer and find nothing more.
const MAX_INPUT_BYTES: u32 = 1024;

/// Runs the named targets, or all, for `seconds` each. Stops at the first finding.
pub(crate) fn run(names: &[String], seconds: u32) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| !TARGETS.contains(&name.as_str())) {
        bail!("unknown fuzz target {unknown:?}; valid targets: {}", TARGETS.join(", "));
    }
    let targets = TARGETS.into_iter().filter(|target| names.is_empty() || names.iter().any(|name| name == target));
    let folder = root()?.join("fuzz");
    let programs = build_targets(&folder)?;
    for target in targets {
        eprintln!("fuzzing {target} for {seconds} seconds");
        let corpus = folder.join("corpus").join(target);
        let findings = folder.join("artifacts").join(target);
        for folder in [&corpus, &findings] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut fuzzer = Command::new(programs.join(target));
        fuzzer
            .arg(&corpus)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_INPUT_BYTES}"))
            .arg(format!("-dict={}", folder.join("words.dict").display()))
            .arg(format!("-artifact_prefix={}/", findings.display()));
        let status = process::run(&mut fuzzer)?;
        if !status.success() {
            bail!(
                "{target} failed with {}; the input is in {}: add it as a test to crates/router/tests/harness/main.rs",
                process::describe_exit(status),
                findings.display()
            );
        }
    }
    Ok(())
}

/// Compiles all targets, and returns the folder of the programs.
fn build_targets(folder: &Path) -> Result<std::path::PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let version = Command::new(&compiler).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        bail!("cannot run `{compiler}`, which compiles libFuzzer: install a C++ compiler, or set CXX to one");
    }
    let mut rustc = Command::new("rustc");
    let host = process::capture(rustc.args(["--print", "host-tuple"]))?;
    let host = host.trim();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(folder)
        // With an explicit target, build scripts are compiled without the flags.
        .args(["build", "--release", "--locked", "--bins", "--target", host, "--target-dir", "target"])
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE_FLAGS.join("\u{1f}"));
    process::run_ok(&mut cargo)?;
    Ok(folder.join("target").join(host).join("release"))
}
