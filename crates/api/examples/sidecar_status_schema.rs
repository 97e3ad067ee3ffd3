//! Prints the JSON Schema of a sidecar's `GET /status` response.

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = rollora_api::sidecar_status::schema()?;
    std::io::stdout().write_all(schema.as_bytes())?;
    Ok(())
}
