//! Asks for something, and waits for what came of it.

use crate::{
    client::{RolloutClient, RolloutClientError},
    render,
    runtime::{CliError, print},
};
use rollora_api::rollout::IntentKind;
use rollora_local::IntentRequest;
use std::time::Duration;
use tokio::time::timeout;

/// How long an answer may take. The wish stays on record after that.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn run(client: &RolloutClient, verb: IntentKind) -> Result<(), CliError> {
    let mut watch = client.watch().await?;
    let overview = watch.next().await?;
    let seen = overview.rollout.status.unwrap_or_default();
    let request = IntentRequest {
        verb,
        revision: seen.revision.number,
        step: seen.step.as_ref().map(|step| step.index),
        claimed_by: std::env::var("USER").ok().filter(|user| !user.is_empty()),
    };
    let intent = client.submit_intent(&request).await.map_err(|error| match error {
        RolloutClientError::Refused(reason) => CliError::Refused(reason),
        other => other.into(),
    })?;
    print(&render::intent_submitted(&intent, &seen))?;
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
            "no answer within {} s: it stays asked; `rollora status` shows when it is done",
            OUTCOME_TIMEOUT.as_secs()
        ))
    })??;
    match last.outcome() {
        Ok(done) => print(&format!("done: {done}\n")),
        Err(reason) => Err(CliError::Refused(format!("refused: {reason}"))),
    }
}
