//! Submits an intent, and waits for its outcome.

use crate::{
    client::{RolloutClient, RolloutClientError},
    render,
    runtime::{CliError, print},
};
use rollora_api::rollout::IntentKind;
use rollora_local::IntentRequest;
use std::time::Duration;
use tokio::time::timeout;

/// Maximum time to wait for the outcome. After that, the intent stays recorded in the Rollout.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn run(client: &RolloutClient, verb: IntentKind) -> Result<(), CliError> {
    let mut watch = client.watch().await?;
    let overview = watch.next().await?;
    let status = overview.rollout.status.unwrap_or_default();
    let request = IntentRequest {
        verb,
        revision: status.revision.number,
        step: status.step.as_ref().map(|step| step.index),
        claimed_by: std::env::var("USER").ok().filter(|user| !user.is_empty()),
    };
    let intent = client.submit_intent(&request).await.map_err(|error| match error {
        RolloutClientError::Refused(reason) => CliError::Refused(reason),
        other => other.into(),
    })?;
    print(&render::intent_submitted(&intent, &status))?;
    let outcome = async {
        loop {
            let last = watch.next().await?.rollout.status.and_then(|status| status.last_action);
            if let Some(last) = last.filter(|last| last.id == intent.id) {
                return Ok::<_, CliError>(last);
            }
        }
    };
    let last = timeout(OUTCOME_TIMEOUT, outcome).await.map_err(|_| {
        CliError::Other(format!(
            "no outcome within {} s: the intent stays recorded, and `rollora status` shows when it takes effect",
            OUTCOME_TIMEOUT.as_secs()
        ))
    })??;
    match last.outcome() {
        Ok(done) => print(&format!("done: {done}\n")),
        Err(reason) => Err(CliError::Refused(format!("refused: {reason}"))),
    }
}
