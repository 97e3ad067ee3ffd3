//! Clients. [`count`] is the guide's script: so many requests one after the other, and how many of them each version
//! answered. [`Traffic`] sends all the time over several connections, whole answers and streams, and keeps a record of
//! every request, for [`crate::judge`].

mod exchange;

pub use exchange::{Ask, Exchange, Failure, Kind, Outcome};

use anyhow::{Result, bail};
use exchange::Client;
use rollora_testbed::{clock, http::ListenAddress};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The guide's count: which version answered how many of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests by the `.model` of their answer.
    pub by_model: BTreeMap<String, usize>,
}

impl Count {
    /// How many requests.
    pub fn total(&self) -> usize {
        self.by_model.values().sum()
    }

    /// How many of them `model` answered.
    pub fn of(&self, model: &str) -> usize {
        self.by_model.get(model).copied().unwrap_or_default()
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Traffic Split Results, total requests: {}", self.total())?;
        self.by_model.iter().try_for_each(|(model, count)| write!(f, "\n{model}: {count} requests"))
    }
}

/// Sends `requests` requests of one token, each over a connection of its own as curl does, and counts `.model`.
pub async fn count(gateway: &ListenAddress, ask: &Ask, requests: usize) -> Result<Count> {
    let mut count = Count::default();
    for number in 1..=requests {
        match ask_once(gateway, ask).await.outcome {
            Outcome::Answered { model, .. } => *count.by_model.entry(model).or_default() += 1,
            Outcome::Failed(failure) => bail!("request {number} of {requests}: {failure}"),
        }
    }
    Ok(count)
}

/// Sends one request over a connection of its own.
pub async fn ask_once(gateway: &ListenAddress, ask: &Ask) -> Exchange {
    Client::new(gateway.clone(), ask.clone()).exchange().await
}

/// Which clients there are.
#[derive(Debug, Clone)]
pub struct Crowd {
    /// What each connection asks for, again and again.
    pub connections: Vec<Ask>,
    /// The time from the start of a request to that of the next on the same connection, unless the answer takes longer.
    pub pace: Duration,
}

impl Crowd {
    /// Three connections with whole answers of one and more tokens, and one with streams.
    pub fn mixed(model: &str, pace: Duration) -> Self {
        let whole = |tokens| Ask::new(model, Kind::Json, tokens);
        Self { connections: vec![whole(1), whole(1), whole(4), Ask::new(model, Kind::Sse, 6)], pace }
    }
}

/// Clients that send all the time; they end when the value is dropped.
#[derive(Debug)]
pub struct Traffic {
    stop: CancellationToken,
    clients: JoinSet<()>,
    records: Arc<Mutex<Vec<Exchange>>>,
}

impl Traffic {
    /// Begins to send.
    pub fn start(gateway: &ListenAddress, crowd: &Crowd) -> Self {
        let (stop, records) = (CancellationToken::new(), Arc::default());
        let mut clients = JoinSet::new();
        for ask in &crowd.connections {
            let client = Client::new(gateway.clone(), ask.clone());
            clients.spawn(send(client, crowd.pace, Arc::clone(&records), stop.clone()));
        }
        Self { stop, clients, records }
    }

    /// What was recorded so far: requests that are over.
    pub fn so_far(&self) -> Vec<Exchange> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests are over.
    pub fn sent(&self) -> usize {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Lets every client end the request that it is in, and gives the record of all, in the order of their ends.
    pub async fn stop(mut self) -> Vec<Exchange> {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        std::mem::take(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn send(mut client: Client, pace: Duration, records: Arc<Mutex<Vec<Exchange>>>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let start = clock::now();
        let exchange = client.exchange().await;
        records.lock().unwrap_or_else(PoisonError::into_inner).push(exchange);
        tokio::time::sleep(pace.saturating_sub(start.elapsed())).await;
    }
}
