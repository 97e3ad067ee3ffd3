//! Typed client of vLLM's adapter endpoints; every answer becomes one error taxonomy.
