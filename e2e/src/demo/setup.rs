//! What the demo runs the guide with: simulated servers, or a real vLLM on the CPU.

use crate::{
    files::{ListedAdapter, RolloutManifest, RolloutStep},
    harness::Setup,
    traffic::{ChatRequest, LoadProfile, ResponseMode},
};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::{
    guide::{MODEL, SOURCE, V1, V2, V3},
    server::ServerKind,
};
use std::{path::PathBuf, time::Duration};

/// The part of the demo that depends on the kind of server.
#[derive(Debug)]
pub(super) struct DemoSetup {
    /// How the output describes the servers.
    pub(super) server_label: &'static str,
    pub(super) setup: Setup,
    /// The entry that the walkthrough lists as v2.
    pub(super) v2: ListedAdapter,
    /// The entry of the hint for a third version: a source that these servers can load.
    pub(super) v3: ListedAdapter,
    pub(super) load: LoadProfile,
    /// With a real vLLM, the texts of the versions differ; the walkthrough checks that.
    pub(super) uses_real_vllm: bool,
}

impl DemoSetup {
    /// Returns three simulated servers.
    pub(super) fn simulated() -> Self {
        let flags = ["--load-millis", "400", "--token-millis", "5"];
        Self {
            server_label: "simulated",
            setup: Setup {
                servers: vec![ServerKind::simulated(&flags); 3],
                adapters: vec![ListedAdapter::new(V1, SOURCE)],
                rollout: demo_rollout(Duration::from_secs(4)),
                api_key: None,
            },
            v2: ListedAdapter::new(V2, SOURCE),
            v3: ListedAdapter::new(V3, SOURCE),
            load: LoadProfile::mixed(MODEL, Duration::from_millis(30)),
            uses_real_vllm: false,
        }
    }

    /// Returns two real servers, with two adapters of different weights.
    pub(super) fn real() -> Result<Self> {
        let home = std::env::var_os("ROLLORA_VLLM_HOME").map(PathBuf::from);
        let home = home.context("ROLLORA_VLLM_HOME is not set: run `cargo xtask demo --vllm`, which installs vLLM")?;
        ensure!(home.join("venv/bin/python").is_file(), "there is no venv/bin/python in {}", home.display());
        Ok(Self {
            server_label: "real, on the CPU",
            setup: Setup {
                servers: vec![ServerKind::Real { home }; 2],
                adapters: vec![ListedAdapter::new(V1, "tiny/adapters/a4")],
                rollout: demo_rollout(Duration::from_secs(6)),
                api_key: None,
            },
            v2: ListedAdapter::new(V2, "tiny/adapters/a6"),
            v3: ListedAdapter::new(V3, "tiny/adapters/a3"),
            load: LoadProfile {
                connections: vec![
                    ChatRequest::new(MODEL, ResponseMode::Json, 2),
                    ChatRequest::new(MODEL, ResponseMode::Sse, 8),
                ],
                interval: Duration::from_millis(150),
            },
            uses_real_vllm: true,
        })
    }
}

/// The guide's steps, with a cleanup delay after the last one that leaves time to count requests.
fn demo_rollout(pause: Duration) -> RolloutManifest {
    use RolloutStep::{Pause, Weight};
    RolloutManifest {
        steps: vec![Weight(10), Pause(pause), Weight(50), Pause(pause), Weight(100)],
        delay: pause,
        quiet_for: Duration::from_secs(2),
        ..RolloutManifest::guide(pause)
    }
}
