//! Makes one vLLM server hold exactly what the adapters file says.
