//! Names of the objects in the guide.

/// Model name that clients request.
pub const MODEL: &str = "small-segment-lora";
/// Version that is stable at first.
pub const V1: &str = "small-segment-lora-v1";
/// Version that is rolled out next.
pub const V2: &str = "small-segment-lora-v2";
/// Version that follows [`V2`].
pub const V3: &str = "small-segment-lora-v3";
/// Source of all versions.
pub const SOURCE: &str = "ttt421/nec119-small-segment-lora";
/// Base model of all servers.
pub const BASE_MODEL: &str = "Qwen/Qwen3-32B";
/// Name of the InferencePool.
pub const POOL: &str = "vllm-qwen3-32b";
/// Name of the adapters ConfigMap.
pub const ADAPTERS_CONFIG_MAP: &str = "vllm-qwen3-32b-adapters";
/// Name of the InferenceModelRewrite that carries the weights.
pub const REWRITE: &str = "small-segment-lora-rewrite";
