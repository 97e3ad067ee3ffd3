//! Executes polls and calls. Decides nothing.

use crate::{
    decide::AdapterCall,
    state::{CallOutcome, PollError, PollRequest, PollStep, ServerObservation},
};
use rollora_api::names::AdapterId;
use rollora_vllm::{ServerMetrics, VllmClient, VllmError};

/// Polls the server: health first, then the identity of the process, then its models.
pub(crate) async fn poll(client: &VllmClient, request: PollRequest) -> Result<ServerObservation, PollError> {
    let failed_at = |step| move |error| PollError { step, error };
    client.health().await.map_err(failed_at(PollStep::Health))?;
    let mut observation = ServerObservation::default();
    if request.metrics {
        observation.metrics = Some(read_metrics(client).await.map_err(failed_at(PollStep::Metrics))?);
    }
    if request.models {
        observation.models = Some(client.models().await.map_err(failed_at(PollStep::Models))?);
    }
    Ok(observation)
}

/// Reads the metrics; empty if the server does not expose them, which is not an error.
async fn read_metrics(client: &VllmClient) -> Result<ServerMetrics, VllmError> {
    match client.metrics().await {
        Err(VllmError::Unauthorized | VllmError::Refused { .. } | VllmError::UnexpectedResponse { .. }) => {
            Ok(ServerMetrics::default())
        }
        result => result,
    }
}

/// Makes one call. An unload is skipped unless `still_unwanted` returns `true` and the adapter was not used again.
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
