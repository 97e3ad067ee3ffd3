//! Many Rollouts over pods that are only objects, on the real API server of the cluster bed, for the bench of the
//! operator.
//!
//! Standard output gets one line, the path of the admin's kubeconfig, when it is ready; then one JSON object for each
//! order that standard input gives as a JSON object in a line. It ends with its standard input, and so do its parts.

use anyhow::{Context as _, Result};
use rollora_api::rollout::IntentKind;
use rollora_testbed::population::{Population, Size};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{self, Write as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// What can be ordered. Each is answered when it is done.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
enum Order {
    Seed { pods: u8, versions: u16 },
    Learn,
    Grow { pools: u16, pods: u8, rollouts: u16, versions: u16 },
    Reconciled,
    Hold { held: bool },
    Begin { count: u16, version: u16 },
    Settled,
    Wish { verb: IntentKind, count: u16 },
    Mark,
    Account,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut population = Population::start().await?;
    writeln!(io::stdout(), "{}", population.kubeconfig().display())?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = orders.next_line().await? {
        let order = serde_json::from_str(&line).with_context(|| format!("no order: {line}"))?;
        let answer = match obey(&mut population, order).await {
            Ok(answer) => json!({ "done": answer }),
            Err(error) => json!({ "failed": format!("{error:#}") }),
        };
        writeln!(io::stdout(), "{answer}")?;
    }
    Ok(())
}

async fn obey(population: &mut Population, order: Order) -> Result<Value> {
    match order {
        Order::Seed { pods, versions } => population.seed(Size { pools: 1, pods, rollouts: 1, versions }).await?,
        Order::Learn => population.learn().await?,
        Order::Grow { pools, pods, rollouts, versions } => {
            population.grow(Size { pools, pods, rollouts, versions }).await?;
        }
        Order::Reconciled => population.reconciled().await?,
        Order::Hold { held } => population.hold(held),
        Order::Begin { count, version } => population.begin(count, version).await?,
        Order::Settled => population.settled().await?,
        Order::Wish { verb, count } => return Ok(json!(population.wish(verb, count).await?)),
        Order::Mark => population.mark(),
        Order::Account => return Ok(serde_json::to_value(population.account()?)?),
    }
    Ok(Value::Null)
}
