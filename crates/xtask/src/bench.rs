//! `cargo xtask bench`.

use anyhow::{Result, bail};

pub(crate) fn run(_names: &[String], _json: bool) -> Result<()> {
    bail!("no bench yet")
}

pub(crate) fn run_all() -> Result<()> {
    bail!("no bench yet")
}
