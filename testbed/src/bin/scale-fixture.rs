//! Many Rollouts over pods that are only objects, on the real API server of the cluster bed, for the bench of the
//! operator.
//!
//! Standard output gets one line, the path of the admin's kubeconfig, when it is ready; then one JSON object for each
//! order that standard input gives as a JSON object in a line. It ends with its standard input, and so do its parts.

use anyhow::{Context as _, Result};
use rollora_api::rollout::IntentKind;
use rollora_testbed::scale_fixture::{FixtureSize, ScaleFixture};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{self, Write as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// What can be ordered. Each is answered when it is done.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
enum FixtureCommand {
    Seed { pods: u8, versions: u16 },
    RecordTemplate,
    Grow { pools: u16, pods: u8, rollouts: u16, versions: u16 },
    Reconciled,
    Hold { held: bool },
    Begin { count: u16, version: u16 },
    Settled,
    Intent { verb: IntentKind, count: u16 },
    ResetCounts,
    RequestCounts,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut population = ScaleFixture::start().await?;
    writeln!(io::stdout(), "{}", population.kubeconfig().display())?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = orders.next_line().await? {
        let order = serde_json::from_str(&line).with_context(|| format!("not a command: {line}"))?;
        let answer = match execute(&mut population, order).await {
            Ok(answer) => json!({ "done": answer }),
            Err(error) => json!({ "failed": format!("{error:#}") }),
        };
        writeln!(io::stdout(), "{answer}")?;
    }
    Ok(())
}

async fn execute(population: &mut ScaleFixture, order: FixtureCommand) -> Result<Value> {
    match order {
        FixtureCommand::Seed { pods, versions } => {
            population.seed(FixtureSize { pools: 1, pods, rollouts: 1, versions }).await?
        }
        FixtureCommand::RecordTemplate => population.record_template().await?,
        FixtureCommand::Grow { pools, pods, rollouts, versions } => {
            population.grow(FixtureSize { pools, pods, rollouts, versions }).await?;
        }
        FixtureCommand::Reconciled => population.wait_until_reconciled().await?,
        FixtureCommand::Hold { held } => population.hold_routers(held),
        FixtureCommand::Begin { count, version } => population.begin_rollouts(count, version).await?,
        FixtureCommand::Settled => population.wait_until_settled().await?,
        FixtureCommand::Intent { verb, count } => return Ok(json!(population.send_intents(verb, count).await?)),
        FixtureCommand::ResetCounts => population.reset_counts(),
        FixtureCommand::RequestCounts => return Ok(serde_json::to_value(population.request_counts()?)?),
    }
    Ok(Value::Null)
}
