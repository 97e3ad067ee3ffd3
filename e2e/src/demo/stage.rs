//! What the guide is played with: simulated servers, or a real vLLM on the CPU.

use crate::{
    bed::Setup,
    files::{Entry, RolloutFile, Step},
    traffic::{Ask, Crowd, Kind as Answer},
};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::{
    guide::{MODEL, SOURCE, V1, V2, V3},
    server::ServerKind,
};
use std::{path::PathBuf, time::Duration};

/// The part of the demo that differs.
#[derive(Debug)]
pub(super) struct Stage {
    /// What the servers are called.
    pub(super) servers: &'static str,
    pub(super) setup: Setup,
    /// What is listed as v2.
    pub(super) v2: Entry,
    /// What the hint for a third version lists: a source that these servers have.
    pub(super) v3: Entry,
    pub(super) crowd: Crowd,
    /// Whether the texts of the answers say which weights answered.
    pub(super) real: bool,
}

impl Stage {
    /// Three simulated servers.
    pub(super) fn simulated() -> Self {
        let flags = ["--load-millis", "400", "--token-millis", "5"];
        Self {
            servers: "simulated",
            setup: Setup {
                servers: vec![ServerKind::simulated(&flags); 3],
                adapters: vec![Entry::new(V1, SOURCE)],
                rollout: rollout(Duration::from_secs(4)),
                api_key: None,
            },
            v2: Entry::new(V2, SOURCE),
            v3: Entry::new(V3, SOURCE),
            crowd: Crowd::mixed(MODEL, Duration::from_millis(30)),
            real: false,
        }
    }

    /// Two real servers, whose two adapters have other weights.
    pub(super) fn real() -> Result<Self> {
        let home = std::env::var_os("ROLLORA_VLLM_HOME").map(PathBuf::from);
        let home = home.context("ROLLORA_VLLM_HOME is not set: `cargo xtask demo --vllm` makes a vLLM and sets it")?;
        ensure!(home.join("venv/bin/python").is_file(), "there is no venv/bin/python in {}", home.display());
        Ok(Self {
            servers: "real, on the CPU",
            setup: Setup {
                servers: vec![ServerKind::Real { home }; 2],
                adapters: vec![Entry::new(V1, "tiny/adapters/a4")],
                rollout: rollout(Duration::from_secs(6)),
                api_key: None,
            },
            v2: Entry::new(V2, "tiny/adapters/a6"),
            v3: Entry::new(V3, "tiny/adapters/a3"),
            crowd: Crowd {
                connections: vec![Ask::new(MODEL, Answer::Json, 2), Ask::new(MODEL, Answer::Sse, 8)],
                pace: Duration::from_millis(150),
            },
            real: true,
        })
    }
}

/// The guide's steps. After the last one a moment to count, before the old version goes.
fn rollout(pause: Duration) -> RolloutFile {
    use Step::{Pause, Weight};
    RolloutFile {
        steps: vec![Weight(10), Pause(pause), Weight(50), Pause(pause), Weight(100)],
        delay: pause,
        quiet_for: Duration::from_secs(2),
        ..RolloutFile::guide(pause)
    }
}
