//! Prints the JSON Schema of what a sidecar answers at `/status`.

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = rollora_api::sidecar_status::schema()?;
    std::io::stdout().write_all(schema.as_bytes())?;
    Ok(())
}
