//! The test bed and its vocabulary: what a person does, and what a person then sees. Scenarios are written over
//! [`Bed`], and know nothing of where it stands; a [`Place`] does.

mod evidence;

use crate::{
    files::{self, Entry, RolloutFile},
    judge::{Killed, Outage, Record, Verdict},
    rollora::Spoken,
    rules::{Routers, RulesLog},
    seen::{Condition, Seen, every_server_is_ready, loaded_everywhere, served_by},
    traffic::{Ask, Count, Crowd, Traffic, count},
};
use anyhow::{Context as _, Result, bail, ensure};
use rollora_testbed::{
    clock,
    guide::{BASE_MODEL, MODEL, SOURCE, V1},
    http::ListenAddress,
    server::{ServerKind, VllmServer},
};
use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long a condition may take to come true, where a scenario does not say otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(20);

/// What a bed begins with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The vLLM servers.
    pub servers: Vec<ServerKind>,
    /// What the adapters file lists.
    pub adapters: Vec<Entry>,
    /// The Rollout.
    pub rollout: RolloutFile,
    /// The key that the servers ask for.
    pub api_key: Option<String>,
}

impl Setup {
    /// The guide: three simulated servers, v1 listed, 90/10, 50/50 and 0/100 with pauses of this length.
    pub fn guide(pause: Duration) -> Self {
        Self {
            servers: vec![ServerKind::simulated(&["--load-millis", "20", "--token-millis", "2"]); 3],
            adapters: vec![Entry::new(V1, SOURCE)],
            rollout: RolloutFile::guide(pause),
            api_key: None,
        }
    }

    /// The same, waiting at 50/50 until somebody promotes.
    pub fn open_at_half(pause: Duration) -> Self {
        Self { rollout: RolloutFile::open_at_half(pause), ..Self::guide(pause) }
    }

    /// The same with these flags for every simulated server.
    #[must_use]
    pub fn with_flags(mut self, flags: &[&str]) -> Self {
        for server in &mut self.servers {
            if let ServerKind::Simulated { flags: known } = server {
                known.extend(flags.iter().map(|&flag| flag.to_owned()));
            }
        }
        self
    }

    /// The adapters file.
    pub fn adapters_yaml(&self) -> String {
        files::adapters_yaml(BASE_MODEL, &self.adapters)
    }
}

/// Where a bed stands.
pub trait Place: Sized + Send + Sync {
    /// Starts everything.
    fn start(setup: &Setup) -> impl Future<Output = Result<Self>> + Send;
    /// Where clients send their requests.
    fn gateway(&self) -> ListenAddress;
    /// Where each router can be asked for `/rules`.
    fn routers(&self) -> Vec<ListenAddress>;
    /// The routers that may serve a request, at any moment from now on.
    fn routers_over_time(&self) -> Routers;
    /// The vLLM servers.
    fn servers(&self) -> &[VllmServer];
    /// The vLLM servers, to be killed and started.
    fn servers_mut(&mut self) -> &mut [VllmServer];
    /// The adapters file as it stands.
    fn adapters_file(&self) -> impl Future<Output = Result<String>> + Send;
    /// Saves the adapters file.
    fn write_adapters(&self, text: &str) -> impl Future<Output = Result<()>> + Send;
    /// Saves the adapters file where it still says `before`; says whether it did. A person who edits a file on this
    /// machine looks at it first; whoever edits an object is told that it has changed.
    fn replace_adapters(&self, before: &str, text: &str) -> impl Future<Output = Result<bool>> + Send;
    /// The Rollout as it was saved.
    fn rollout_file(&self) -> impl Future<Output = Result<String>> + Send;
    /// Saves the Rollout.
    fn write_rollout(&self, text: &str) -> impl Future<Output = Result<()>> + Send;
    /// Looks at everything.
    fn look(&self) -> impl Future<Output = Seen> + Send;
    /// Runs a verb of `rollora`.
    fn say(&self, arguments: &[&str]) -> impl Future<Output = Result<Spoken>> + Send;
    /// Whether the gateway goes with the operator, because one process is both.
    fn gateway_is_in_operator(&self) -> bool;
    /// Whether a server that tries an adapter first has no requests meanwhile: a gateway of ours sees to that, others
    /// know nothing of it.
    fn pilots_are_quiet(&self) -> bool;
    /// When rewrites were written since the beginning, where somebody keeps a record of that.
    fn rewrite_writes(&self) -> Result<Vec<Instant>> {
        Ok(Vec::new())
    }
    /// Ends the operator as `kill -9` does.
    fn kill_operator(&mut self);
    /// Starts it again on what it left.
    fn start_operator(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// The ends of all logs.
    fn logs(&self) -> String;
    /// What there is to see besides.
    fn objects(&self) -> impl Future<Output = String> + Send {
        async { String::new() }
    }
}

/// A test bed. Everything it started ends when it is dropped.
#[derive(Debug)]
pub struct Bed<P: Place> {
    /// Where it stands.
    pub place: P,
    api_key: Option<String>,
    clients: Option<(Traffic, RulesLog)>,
    outages: Vec<Outage>,
}

impl<P: Place> Bed<P> {
    /// Starts everything.
    pub async fn start(setup: &Setup) -> Result<Self> {
        Ok(Self { place: P::start(setup).await?, api_key: setup.api_key.clone(), clients: None, outages: Vec::new() })
    }

    /// A bed at a place that is prepared already.
    pub fn at(place: P) -> Self {
        Self { place, api_key: None, clients: None, outages: Vec::new() }
    }

    /// Clients send this key.
    #[must_use]
    pub fn with_key(mut self, key: Option<&str>) -> Self {
        self.api_key = key.map(str::to_owned);
        self
    }

    /// Waits until a condition holds.
    pub async fn sees(&self, condition: Condition) -> Result<Seen> {
        self.sees_within(PATIENCE, condition).await
    }

    /// Waits until a condition holds, this long at most; what there is to see is in the error otherwise.
    pub async fn sees_within(&self, limit: Duration, condition: Condition) -> Result<Seen> {
        self.sees_telling(limit, condition, |_| {}).await
    }

    /// The same, telling at every look what there is to see.
    pub async fn sees_telling(
        &self,
        limit: Duration,
        condition: Condition,
        mut tell: impl FnMut(&Seen),
    ) -> Result<Seen> {
        let start = clock::now();
        loop {
            let seen = self.place.look().await;
            tell(&seen);
            if condition.holds(&seen) {
                return Ok(seen);
            }
            if start.elapsed() > limit {
                bail!("not seen within {limit:?}: {condition}\n{}", self.evidence(&seen).await);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// For this long a condition holds whenever it is looked.
    pub async fn keeps_seeing(&self, duration: Duration, condition: Condition) -> Result<()> {
        let start = clock::now();
        while start.elapsed() < duration {
            let seen = self.place.look().await;
            if !condition.holds(&seen) {
                bail!("not true any more: {condition}\n{}", self.evidence(&seen).await);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// The beginning of every scenario: v1 is on every server and has all requests, and every server gets some.
    pub async fn sees_baseline(&self) -> Result<()> {
        let serves = served_by(MODEL, V1).and(loaded_everywhere(V1));
        self.sees(serves.and(every_server_is_ready())).await.map(drop)
    }

    /// A person adds a line to the adapters file.
    pub async fn list(&self, id: &str) -> Result<()> {
        self.list_from(id, SOURCE).await
    }

    /// The same with another source.
    pub async fn list_from(&self, id: &str, source: &str) -> Result<()> {
        self.edit(|text| files::list(text, &Entry::new(id, source))).await
    }

    /// A person moves a line of the adapters file to `ensureNotExist`.
    pub async fn unlist(&self, id: &str) -> Result<()> {
        self.edit(|text| files::unlist(text, id)).await
    }

    /// A person takes a line out of the adapters file.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.edit(|text| files::remove(text, id)).await
    }

    async fn edit(&self, edit: impl Fn(&str) -> Result<String>) -> Result<()> {
        loop {
            let before = self.place.adapters_file().await?;
            if self.place.replace_adapters(&before, &edit(&before)?).await? {
                return Ok(());
            }
        }
    }

    /// Clients begin to send, all the time.
    pub fn clients_start(&mut self, crowd: &Crowd) {
        let mut crowd = crowd.clone();
        crowd.connections.iter_mut().for_each(|ask| ask.api_key.clone_from(&self.api_key));
        let rules = RulesLog::start(&self.place.routers_over_time(), MODEL);
        self.clients = Some((Traffic::start(&self.place.gateway(), &crowd), rules));
    }

    /// The clients end, and this is what they saw.
    pub async fn clients_stop(&mut self) -> Result<Record> {
        let (traffic, rules) = self.clients.take().context("no clients were started")?;
        let exchanges = traffic.stop().await;
        Ok(Record { exchanges, routers: rules.so_far(), outages: self.outages.clone() })
    }

    /// Waits until the clients have sent so many requests.
    pub async fn clients_sent(&self, requests: usize) -> Result<()> {
        let (traffic, _) = self.clients.as_ref().context("no clients were started")?;
        let start = clock::now();
        while traffic.sent() < requests {
            ensure!(start.elapsed() < PATIENCE, "the clients sent only {} requests", traffic.sent());
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// The clients end, and none of them saw anything wrong.
    pub async fn clients_saw_nothing_wrong(&mut self) -> Result<Record> {
        let record = self.clients_stop().await?;
        let verdict = record.verdict();
        if !verdict.is_good() {
            bail!("{verdict}\n{}", self.evidence(&self.place.look().await).await);
        }
        Ok(record)
    }

    /// What the clients saw so far.
    pub fn clients_so_far(&self) -> Option<Verdict> {
        let record = |(traffic, rules): &(Traffic, RulesLog)| Record {
            exchanges: traffic.so_far(),
            routers: rules.so_far(),
            outages: self.outages.clone(),
        };
        self.clients.as_ref().map(|clients| record(clients).verdict())
    }

    /// The guide's count: 20 requests one after the other.
    pub async fn count(&self) -> Result<Count> {
        let ask = Ask::new(MODEL, crate::traffic::Kind::Json, 1).with_key(self.api_key.as_deref());
        count(&self.place.gateway(), &ask, 20).await
    }

    /// What `rollora ARGUMENTS` says; it must end well.
    pub async fn says(&self, arguments: &[&str]) -> Result<String> {
        let spoken = self.place.say(arguments).await?;
        ensure!(spoken.code == 0, "`rollora {}` ended with {spoken:?}", arguments.join(" "));
        Ok(spoken.out)
    }

    /// Ends a server as `kill -9` does.
    pub fn kill_server(&mut self, index: usize) {
        let from = clock::now();
        self.place.servers_mut()[index].kill();
        self.note_outage_of_server(from, clock::now());
    }

    /// A server began to end at the one moment, and was dead at the other.
    pub(crate) fn note_outage_of_server(&mut self, from: Instant, dead: Instant) {
        self.outages.push(Outage { of: Killed::Server, from, dead, until: None });
    }

    /// Starts a server where it was, knowing no adapter, and waits until it answers.
    pub async fn start_server(&mut self, index: usize) -> Result<()> {
        let server = &mut self.place.servers_mut()[index];
        server.start()?;
        server.wait_ready().await
    }

    /// A server has died of an adapter that it tried, since `from`. What it was working on is lost, where it had
    /// requests meanwhile.
    pub fn pilot_died(&mut self, from: Instant) {
        if !self.place.pilots_are_quiet() {
            self.outages.push(Outage { of: Killed::Server, from, dead: clock::now(), until: None });
        }
    }

    /// Ends the operator as `kill -9` does, and on one machine everything but the servers.
    pub fn kill_operator(&mut self) {
        let from = clock::now();
        self.place.kill_operator();
        if self.place.gateway_is_in_operator() {
            self.outages.push(Outage { of: Killed::Gateway, from, dead: clock::now(), until: None });
        }
    }

    /// Starts it again on what it left.
    pub async fn start_operator(&mut self) -> Result<()> {
        self.place.start_operator().await?;
        if let Some(outage) = self.outages.iter_mut().rev().find(|outage| outage.of == Killed::Gateway) {
            outage.until = Some(clock::now());
        }
        Ok(())
    }

    /// Everything that a person needs who was not there.
    pub async fn evidence(&self, seen: &Seen) -> String {
        let clients = self.clients_so_far().map_or_else(String::new, |verdict| format!("clients: {verdict}\n"));
        let objects = self.place.objects().await;
        format!("{}{clients}{objects}{}", evidence::words(seen), self.place.logs())
    }
}

impl<P: Place> Drop for Bed<P> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.place.logs());
        }
    }
}
