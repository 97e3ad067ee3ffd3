//! Asking the server: looks and calls, without any decision.

use crate::{
    decide::Action,
    memory::{Ended, Look, LookError, LookStep, Seen},
};
use rollora_api::names::AdapterId;
use rollora_vllm::{ServerMetrics, VllmClient, VllmError};

/// Looks at the server: health first, the process before what it holds.
pub(crate) async fn look(client: &VllmClient, look: Look) -> Result<Seen, LookError> {
    let at = |step| move |error| LookError { step, error };
    client.health().await.map_err(at(LookStep::Health))?;
    let mut seen = Seen::default();
    if look.metrics {
        seen.metrics = Some(metrics(client).await.map_err(at(LookStep::Metrics))?);
    }
    if look.models {
        seen.models = Some(client.models().await.map_err(at(LookStep::Models))?);
    }
    Ok(seen)
}

/// The metrics; empty where the server does not show any, which is no fault of it.
async fn metrics(client: &VllmClient) -> Result<ServerMetrics, VllmError> {
    match client.metrics().await {
        Err(VllmError::Unauthorized | VllmError::Refused { .. } | VllmError::UnexpectedResponse { .. }) => {
            Ok(ServerMetrics::default())
        }
        answer => answer,
    }
}

/// Makes one call; an unload only if `still_unwanted` says so and nobody used the adapter again.
pub(crate) async fn act(
    client: &VllmClient,
    action: &Action,
    still_unwanted: impl AsyncFnOnce(&AdapterId) -> bool,
) -> Ended {
    Ended::Answered(match action {
        Action::Load { id, source, .. } => client.load(id, source).await,
        Action::Probe { id } => client.probe(id).await,
        Action::Unload { id, last_used } => {
            let unused = metrics(client).await.is_ok_and(|metrics| metrics.last_used.get(id) == last_used.as_ref());
            if !unused || !still_unwanted(id).await {
                return Ended::Skipped;
            }
            client.unload(id).await
        }
    })
}
