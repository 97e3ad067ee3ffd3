//! How many instructions one exchange takes in `rollora-ext-proc`, without a network: the same number on a busy machine and
//! on a quiet one, so that two commits can be compared exactly. Counted by callgrind, where that is installed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::super::Measurement;
use super::measurement;

/// The lengths of prompts, in KiB.
const PROMPT_SIZES_KIB: [usize; 3] = [1, 16, 256];
/// What is counted is the difference between these two numbers of exchanges.
const BASELINE_EXCHANGES: u32 = 20;
const MEASURED_EXCHANGES: u32 = 120;

/// Nothing where there is no callgrind.
pub(super) fn run(program: &Path) -> Result<Vec<Measurement>> {
    let there = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("no valgrind here: instructions are not counted");
        return Ok(Vec::new());
    }
    PROMPT_SIZES_KIB.iter().map(|kib| measure_size(program, *kib)).collect()
}

fn measure_size(program: &Path, kib: usize) -> Result<Measurement> {
    let (few, many) =
        (count_instructions(program, kib, BASELINE_EXCHANGES)?, count_instructions(program, kib, MEASURED_EXCHANGES)?);
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let each = many.saturating_sub(few) as f64 / f64::from(MEASURED_EXCHANGES - BASELINE_EXCHANGES);
    Ok(measurement(&format!("{kib} KiB: instructions an exchange, without the network"), each, "1"))
}

fn count_instructions(program: &Path, kib: usize, count: u32) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    let output =
        valgrind.args([(kib * 1024).to_string(), count.to_string()]).output().context("cannot run valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind failed: {said}");
    }
    parse_instruction_count(&said).with_context(|| format!("valgrind did not say how much it has collected: {said}"))
}

fn parse_instruction_count(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callgrind_has_collected_is_found_among_what_it_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n==7== I   refs:      1,234,567\n";
        assert_eq!(parse_instruction_count(said), Some(1_234_567));
        assert_eq!(parse_instruction_count("==7== Command: nothing\n"), None);
    }
}
