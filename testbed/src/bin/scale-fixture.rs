//! Runs an API server with many Rollouts over pods that exist only as objects, for the bench of the operator.
//!
//! When the fixture is ready, the program writes one line to standard output: the path of the admin's kubeconfig. After
//! that it reads commands from standard input, one JSON object a line, and answers each with one JSON object on
//! standard output. It exits when its standard input closes, and takes the API server and etcd with it.

use anyhow::{Context as _, Result};
use rollora_api::rollout::IntentKind;
use rollora_testbed::scale_fixture::{FixtureSize, ScaleFixture};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{self, Write as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Command on standard input. Each is answered when it has been executed.
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
    let mut fixture = ScaleFixture::start().await?;
    writeln!(io::stdout(), "{}", fixture.kubeconfig().display())?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let command = serde_json::from_str(&line).with_context(|| format!("not a command: {line}"))?;
        let response = match execute(&mut fixture, command).await {
            Ok(response) => json!({ "done": response }),
            Err(error) => json!({ "failed": format!("{error:#}") }),
        };
        writeln!(io::stdout(), "{response}")?;
    }
    Ok(())
}

async fn execute(fixture: &mut ScaleFixture, command: FixtureCommand) -> Result<Value> {
    match command {
        FixtureCommand::Seed { pods, versions } => {
            fixture.seed(FixtureSize { pools: 1, pods, rollouts: 1, versions }).await?;
        }
        FixtureCommand::RecordTemplate => fixture.record_template().await?,
        FixtureCommand::Grow { pools, pods, rollouts, versions } => {
            fixture.grow(FixtureSize { pools, pods, rollouts, versions }).await?;
        }
        FixtureCommand::Reconciled => fixture.wait_until_reconciled().await?,
        FixtureCommand::Hold { held } => fixture.hold_routers(held),
        FixtureCommand::Begin { count, version } => fixture.begin_rollouts(count, version).await?,
        FixtureCommand::Settled => fixture.wait_until_settled().await?,
        FixtureCommand::Intent { verb, count } => return Ok(json!(fixture.send_intents(verb, count).await?)),
        FixtureCommand::ResetCounts => fixture.reset_counts(),
        FixtureCommand::RequestCounts => return Ok(serde_json::to_value(fixture.request_counts()?)?),
    }
    Ok(Value::Null)
}
