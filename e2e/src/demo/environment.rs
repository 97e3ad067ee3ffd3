//! The environments that the demo runs in, with what is specific to each.

use crate::{harness::Environment, local::LocalEnvironment};
use anyhow::Result;
use std::future::Future;

/// An environment of the demo, with the words that the walkthrough uses for it.
pub(super) trait DemoEnvironment: Environment {
    /// The file or object that lists the adapters, as the walkthrough names it.
    const ADAPTERS_SOURCE: &'static str;
    /// Shown while the Rollout's status has no message.
    const STARTING_MESSAGE: &'static str;

    /// Returns what a person sees when they read the Rollout there, as lines.
    fn rollout_view(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
}

impl DemoEnvironment for LocalEnvironment {
    const ADAPTERS_SOURCE: &'static str = "adapters.yaml";
    const STARTING_MESSAGE: &'static str = "rollora local is starting";

    async fn rollout_view(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
