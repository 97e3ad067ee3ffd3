//! The names of the guide.

/// The name that clients send.
pub const MODEL: &str = "small-segment-lora";
/// The version that serves in the beginning.
pub const V1: &str = "small-segment-lora-v1";
/// The version that is rolled out.
pub const V2: &str = "small-segment-lora-v2";
/// A version after that.
pub const V3: &str = "small-segment-lora-v3";
/// Where every version comes from.
pub const SOURCE: &str = "ttt421/nec119-small-segment-lora";
/// The base model of every server.
pub const BASE_MODEL: &str = "Qwen/Qwen3-32B";
/// The pool.
pub const POOL: &str = "vllm-qwen3-32b";
/// The ConfigMap that lists the adapters.
pub const ADAPTERS_CONFIG_MAP: &str = "vllm-qwen3-32b-adapters";
/// The rewrite that carries the weights.
pub const REWRITE: &str = "small-segment-lora-rewrite";
