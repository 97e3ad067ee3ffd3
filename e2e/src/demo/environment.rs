//! The places where the story can happen, each with what is special about it.

use crate::{harness::Environment, local::LocalEnvironment};
use anyhow::Result;
use std::future::Future;

/// A place, and how the story speaks of it.
pub(super) trait DemoEnvironment: Environment {
    /// What lists the adapters.
    const ADAPTERS_SOURCE: &'static str;
    /// What is waited for while the Rollout says nothing.
    const STARTING_MESSAGE: &'static str;

    /// What a person sees there who looks at the Rollout, in lines.
    fn rollout_view(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
}

impl DemoEnvironment for LocalEnvironment {
    const ADAPTERS_SOURCE: &'static str = "adapters.yaml";
    const STARTING_MESSAGE: &'static str = "rollora local starts";

    async fn rollout_view(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
