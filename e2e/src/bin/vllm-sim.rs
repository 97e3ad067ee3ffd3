//! vllm-sim.
fn main() {}
