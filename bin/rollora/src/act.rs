//! Asks for something, and waits for what came of it.

use crate::{
    client::{Client, ClientError},
    render,
    shell::{Failure, say},
};
use rollora_api::rollout::IntentKind;
use rollora_local::IntentRequest;
use std::time::Duration;
use tokio::time::timeout;

/// How long an answer may take. The wish stays on record after that.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(client: &Client, verb: IntentKind) -> Result<(), Failure> {
    let mut watch = client.watch().await?;
    let overview = watch.next().await?;
    let seen = overview.rollout.status.unwrap_or_default();
    let request = IntentRequest {
        verb,
        revision: seen.revision.number,
        step: seen.step.as_ref().map(|step| step.index),
        claimed_by: std::env::var("USER").ok().filter(|user| !user.is_empty()),
    };
    let intent = client.intend(&request).await.map_err(|error| match error {
        ClientError::Refused(reason) => Failure::Refused(reason),
        other => other.into(),
    })?;
    say(&render::asked(&intent, &seen))?;
    let outcome = async {
        loop {
            let last = watch.next().await?.rollout.status.and_then(|status| status.last_action);
            if let Some(last) = last.filter(|last| last.id == intent.id) {
                return Ok::<_, Failure>(last);
            }
        }
    };
    let last = timeout(PATIENCE, outcome).await.map_err(|_| {
        Failure::Other(format!(
            "no answer within {} s: it stays asked; `rollora status` shows when it is done",
            PATIENCE.as_secs()
        ))
    })??;
    match last.outcome() {
        Ok(done) => say(&format!("done: {done}\n")),
        Err(reason) => Err(Failure::Refused(format!("refused: {reason}"))),
    }
}
