//! The places where the story can happen, each with what is special about it.

use crate::{bed::Place, machine::Machine};
use anyhow::Result;
use std::future::Future;

/// A place, and how the story speaks of it.
pub(super) trait Scene: Place {
    /// What lists the adapters.
    const LIST: &'static str;
    /// What is waited for while the Rollout says nothing.
    const STARTS: &'static str;

    /// What a person sees there who looks at the Rollout, in lines.
    fn shown(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
}

impl Scene for Machine {
    const LIST: &'static str = "adapters.yaml";
    const STARTS: &'static str = "rollora local starts";

    async fn shown(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
