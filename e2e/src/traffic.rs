//! Clients. [`count`] is the guide's script: so many requests one after the other, and how many of them each version
//! answered. [`Traffic`] sends all the time over several connections, whole answers and streams, and keeps a record of
//! every request, for [`crate::judge`].

mod request;

pub use request::{ChatRequest, RequestFailure, RequestOutcome, RequestRecord, ResponseMode};

use anyhow::{Result, bail};
use request::TrafficClient;
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
pub struct SplitCount {
    /// Requests by the `.model` of their answer.
    pub by_model: BTreeMap<String, usize>,
}

impl SplitCount {
    /// How many requests.
    pub fn total(&self) -> usize {
        self.by_model.values().sum()
    }

    /// How many of them `model` answered.
    pub fn of(&self, model: &str) -> usize {
        self.by_model.get(model).copied().unwrap_or_default()
    }
}

impl fmt::Display for SplitCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Traffic Split Results, total requests: {}", self.total())?;
        self.by_model.iter().try_for_each(|(model, count)| write!(f, "\n{model}: {count} requests"))
    }
}

/// Sends `requests` requests of one token, each over a connection of its own as curl does, and counts `.model`.
pub async fn count_split(gateway: &ListenAddress, ask: &ChatRequest, requests: usize) -> Result<SplitCount> {
    let mut count = SplitCount::default();
    for number in 1..=requests {
        match send_once(gateway, ask).await.outcome {
            RequestOutcome::Succeeded { model, .. } => *count.by_model.entry(model).or_default() += 1,
            RequestOutcome::Failed(failure) => bail!("request {number} of {requests}: {failure}"),
        }
    }
    Ok(count)
}

/// Sends one request over a connection of its own.
pub async fn send_once(gateway: &ListenAddress, ask: &ChatRequest) -> RequestRecord {
    TrafficClient::new(gateway.clone(), ask.clone()).send_and_record().await
}

/// Which clients there are.
#[derive(Debug, Clone)]
pub struct LoadProfile {
    /// What each connection asks for, again and again.
    pub connections: Vec<ChatRequest>,
    /// The time from the start of a request to that of the next on the same connection, unless the answer takes longer.
    pub interval: Duration,
}

impl LoadProfile {
    /// Three connections with whole answers of one and more tokens, and one with streams.
    pub fn mixed(model: &str, interval: Duration) -> Self {
        let whole = |tokens| ChatRequest::new(model, ResponseMode::Json, tokens);
        Self {
            connections: vec![whole(1), whole(1), whole(4), ChatRequest::new(model, ResponseMode::Sse, 6)],
            interval,
        }
    }
}

/// Clients that send all the time; they end when the value is dropped.
#[derive(Debug)]
pub struct BackgroundTraffic {
    stop: CancellationToken,
    clients: JoinSet<()>,
    records: Arc<Mutex<Vec<RequestRecord>>>,
}

impl BackgroundTraffic {
    /// Begins to send.
    pub fn start(gateway: &ListenAddress, crowd: &LoadProfile) -> Self {
        let (stop, records) = (CancellationToken::new(), Arc::default());
        let mut clients = JoinSet::new();
        for ask in &crowd.connections {
            let client = TrafficClient::new(gateway.clone(), ask.clone());
            clients.spawn(run_client(client, crowd.interval, Arc::clone(&records), stop.clone()));
        }
        Self { stop, clients, records }
    }

    /// What was recorded so far: requests that are over.
    pub fn records(&self) -> Vec<RequestRecord> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests are over.
    pub fn finished_requests(&self) -> usize {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Lets every client end the request that it is in, and gives the record of all, in the order of their ends.
    pub async fn stop(mut self) -> Vec<RequestRecord> {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        std::mem::take(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn run_client(
    mut client: TrafficClient,
    pace: Duration,
    records: Arc<Mutex<Vec<RequestRecord>>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let start = clock::now();
        let exchange = client.send_and_record().await;
        records.lock().unwrap_or_else(PoisonError::into_inner).push(exchange);
        tokio::time::sleep(pace.saturating_sub(start.elapsed())).await;
    }
}
