//! Asking the server: looks and calls, without any decision.

use crate::{
    decide::AdapterCall,
    state::{CallOutcome, PollError, PollRequest, PollStep, ServerObservation},
};
use rollora_api::names::AdapterId;
use rollora_vllm::{ServerMetrics, VllmClient, VllmError};

/// Looks at the server: health first, the process before what it holds.
pub(crate) async fn poll(client: &VllmClient, look: PollRequest) -> Result<ServerObservation, PollError> {
    let at = |step| move |error| PollError { step, error };
    client.health().await.map_err(at(PollStep::Health))?;
    let mut seen = ServerObservation::default();
    if look.metrics {
        seen.metrics = Some(read_metrics(client).await.map_err(at(PollStep::Metrics))?);
    }
    if look.models {
        seen.models = Some(client.models().await.map_err(at(PollStep::Models))?);
    }
    Ok(seen)
}

/// The metrics; empty where the server does not show any, which is no fault of it.
async fn read_metrics(client: &VllmClient) -> Result<ServerMetrics, VllmError> {
    match client.metrics().await {
        Err(VllmError::Unauthorized | VllmError::Refused { .. } | VllmError::UnexpectedResponse { .. }) => {
            Ok(ServerMetrics::default())
        }
        answer => answer,
    }
}

/// Makes one call; an unload only if `still_unwanted` says so and nobody used the adapter again.
pub(crate) async fn execute(
    client: &VllmClient,
    action: &AdapterCall,
    still_unwanted: impl AsyncFnOnce(&AdapterId) -> bool,
) -> CallOutcome {
    CallOutcome::Executed(match action {
        AdapterCall::Load { id, source, .. } => client.load(id, source).await,
        AdapterCall::Probe { id } => client.probe(id).await,
        AdapterCall::Unload { id, last_used } => {
            let unused =
                read_metrics(client).await.is_ok_and(|metrics| metrics.last_used.get(id) == last_used.as_ref());
            if !unused || !still_unwanted(id).await {
                return CallOutcome::Skipped;
            }
            client.unload(id).await
        }
    })
}
