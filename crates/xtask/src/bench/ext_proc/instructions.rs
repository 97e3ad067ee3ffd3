//! How many instructions one exchange takes in `rollora-ext-proc`, without a network: the same number on a busy machine and
//! on a quiet one, so that two commits can be compared exactly. Counted by callgrind, where that is installed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::super::Measure;
use super::measure;

/// The lengths of prompts, in KiB.
const SIZES: [usize; 3] = [1, 16, 256];
/// What is counted is the difference between these two numbers of exchanges.
const FEW: u32 = 20;
const MANY: u32 = 120;

/// Nothing where there is no callgrind.
pub(super) fn run(program: &Path) -> Result<Vec<Measure>> {
    let there = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("no valgrind here: instructions are not counted");
        return Ok(Vec::new());
    }
    SIZES.iter().map(|kib| each(program, *kib)).collect()
}

fn each(program: &Path, kib: usize) -> Result<Measure> {
    let (few, many) = (instructions(program, kib, FEW)?, instructions(program, kib, MANY)?);
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let each = many.saturating_sub(few) as f64 / f64::from(MANY - FEW);
    Ok(measure(&format!("{kib} KiB: instructions an exchange, without the network"), each, "1"))
}

fn instructions(program: &Path, kib: usize, count: u32) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    let output =
        valgrind.args([(kib * 1024).to_string(), count.to_string()]).output().context("cannot run valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind failed: {said}");
    }
    collected(&said).with_context(|| format!("valgrind did not say how much it has collected: {said}"))
}

fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callgrind_has_collected_is_found_among_what_it_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n==7== I   refs:      1,234,567\n";
        assert_eq!(collected(said), Some(1_234_567));
        assert_eq!(collected("==7== Command: nothing\n"), None);
    }
}
