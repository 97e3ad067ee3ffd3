//! Clients. [`count_split`] is the guide's script: it sends requests one after another and counts the answers of each
//! version. [`BackgroundTraffic`] sends continuously over several connections, whole responses and streams, and records
//! every request for [`crate::oracle`].

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

/// The guide's count: how many of the requests each version answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SplitCount {
    /// Number of requests by the `model` field of their response.
    pub by_model: BTreeMap<String, usize>,
}

impl SplitCount {
    /// Returns the number of requests.
    pub fn total(&self) -> usize {
        self.by_model.values().sum()
    }

    /// Returns how many of the requests `model` answered.
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
pub async fn count_split(gateway: &ListenAddress, request: &ChatRequest, requests: usize) -> Result<SplitCount> {
    let mut count = SplitCount::default();
    for number in 1..=requests {
        match send_once(gateway, request).await.outcome {
            RequestOutcome::Succeeded { model, .. } => *count.by_model.entry(model).or_default() += 1,
            RequestOutcome::Failed(failure) => bail!("request {number} of {requests}: {failure}"),
        }
    }
    Ok(count)
}

/// Sends one request over a connection of its own.
pub async fn send_once(gateway: &ListenAddress, request: &ChatRequest) -> RequestRecord {
    TrafficClient::new(gateway.clone(), request.clone()).send_and_record().await
}

/// The connections of the background clients.
#[derive(Debug, Clone)]
pub struct LoadProfile {
    /// One request per connection, which it sends again and again.
    pub connections: Vec<ChatRequest>,
    /// The time from the start of one request to the start of the next on the same connection; longer if a response
    /// takes longer.
    pub interval: Duration,
}

impl LoadProfile {
    /// Returns three connections with whole responses of one and more tokens, and one connection with streams.
    pub fn mixed(model: &str, interval: Duration) -> Self {
        let whole = |tokens| ChatRequest::new(model, ResponseMode::Json, tokens);
        Self {
            connections: vec![whole(1), whole(1), whole(4), ChatRequest::new(model, ResponseMode::Sse, 6)],
            interval,
        }
    }
}

/// Clients that send continuously; they end when the value is dropped.
#[derive(Debug)]
pub struct BackgroundTraffic {
    stop: CancellationToken,
    clients: JoinSet<()>,
    records: Arc<Mutex<Vec<RequestRecord>>>,
}

impl BackgroundTraffic {
    /// Starts one client per connection of the load profile.
    pub fn start(gateway: &ListenAddress, load: &LoadProfile) -> Self {
        let (stop, records) = (CancellationToken::new(), Arc::default());
        let mut clients = JoinSet::new();
        for request in &load.connections {
            let client = TrafficClient::new(gateway.clone(), request.clone());
            clients.spawn(run_client(client, load.interval, Arc::clone(&records), stop.clone()));
        }
        Self { stop, clients, records }
    }

    /// Returns the records of all requests that have ended so far.
    pub fn records(&self) -> Vec<RequestRecord> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of requests that have ended so far.
    pub fn finished_requests(&self) -> usize {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Lets every client finish its current request, and returns all records, in the order in which the requests ended.
    pub async fn stop(mut self) -> Vec<RequestRecord> {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        std::mem::take(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn run_client(
    mut client: TrafficClient,
    interval: Duration,
    records: Arc<Mutex<Vec<RequestRecord>>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let start = clock::now();
        let record = client.send_and_record().await;
        records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        tokio::time::sleep(interval.saturating_sub(start.elapsed())).await;
    }
}
