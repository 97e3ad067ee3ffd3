//! Runs one constant exchange `COUNT` times, for counting its instructions: `fixed_exchange PROMPT_BYTES COUNT`.

use anyhow::{Context as _, Result};
use rollora_ext_proc::fixed_exchange::FixedExchange;
use std::env::args;

const REWRITE: &str = r#"{
    "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite",
    "metadata": { "name": "small-segment-lora", "uid": "0b1d" },
    "spec": { "poolRef": { "name": "pool" }, "rules": [{
        "matches": [{ "model": { "value": "small-segment-lora" } }],
        "targets": [{ "modelRewrite": "small-segment-lora-v2", "weight": 100 }]
    }] }
}"#;

fn main() -> Result<()> {
    let number = |index| -> Result<usize> {
        Ok(args().nth(index).context("usage: fixed_exchange PROMPT_BYTES COUNT")?.parse()?)
    };
    let exchange = FixedExchange::new(&serde_json::from_str(REWRITE)?, "pool", "small-segment-lora", number(1)?);
    for _ in 0..number(2)? {
        std::hint::black_box(exchange.run());
    }
    Ok(())
}
