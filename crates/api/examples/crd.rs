//! Prints the CustomResourceDefinition of Rollouts as YAML.

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let definition = rollora_api::rollout::crd::yaml()?;
    std::io::stdout().write_all(definition.as_bytes())?;
    Ok(())
}
