//! Number of instructions of one exchange in `rollora-ext-proc`, without a network. It does not depend on the load of
//! the machine, so two commits can be compared exactly. Counted by callgrind, if valgrind is installed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::super::Measurement;
use super::measurement;

/// Lengths of prompts, in KiB.
const PROMPT_SIZES_KIB: [usize; 3] = [1, 16, 256];
/// The result is the difference between runs with these two numbers of exchanges.
const BASELINE_EXCHANGES: u32 = 20;
const MEASURED_EXCHANGES: u32 = 120;

/// Returns no measurements if valgrind is not installed.
pub(super) fn run(program: &Path) -> Result<Vec<Measurement>> {
    let version = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        eprintln!("valgrind is not installed: instructions are not counted");
        return Ok(Vec::new());
    }
    PROMPT_SIZES_KIB.iter().map(|kib| measure_size(program, *kib)).collect()
}

fn measure_size(program: &Path, kib: usize) -> Result<Measurement> {
    let (few, many) =
        (count_instructions(program, kib, BASELINE_EXCHANGES)?, count_instructions(program, kib, MEASURED_EXCHANGES)?);
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let each = many.saturating_sub(few) as f64 / f64::from(MEASURED_EXCHANGES - BASELINE_EXCHANGES);
    Ok(measurement(&format!("{kib} KiB: instructions per exchange, without the network"), each, "1"))
}

fn count_instructions(program: &Path, kib: usize, count: u32) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    let output =
        valgrind.args([(kib * 1024).to_string(), count.to_string()]).output().context("cannot run valgrind")?;
    let output_text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind failed: {output_text}");
    }
    parse_instruction_count(&output_text)
        .with_context(|| format!("valgrind's output has no instruction count: {output_text}"))
}

fn parse_instruction_count(output_text: &str) -> Option<u64> {
    let line = output_text.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_count_is_parsed_from_callgrind_output() {
        let output_text = "==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n==7== I   refs:      1,234,567\n";
        assert_eq!(parse_instruction_count(output_text), Some(1_234_567));
        assert_eq!(parse_instruction_count("==7== Command: nothing\n"), None);
    }
}
