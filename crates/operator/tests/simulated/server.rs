//! One vLLM server with its sidecar, as far as the operator can tell.

use jiff::{SignedDuration, Timestamp};
use rollora_api::{
    adapters::{AdaptersFile, ContentHash},
    names::AdapterId,
    operator_directives::{Admission, OperatorDirectives},
    sidecar_status::{
        ADAPTERS_NOT_VERIFIED, AdapterState, AdapterStatus, ConfigStatus, ReadinessStatus, ReportedError,
        ServerIdentity, SidecarStatus,
    },
};
use rollora_operator::ports::Server;
use std::collections::{BTreeMap, BTreeSet};

/// What a sidecar has read of the ConfigMap.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Content {
    pub(crate) file: AdaptersFile,
    pub(crate) key: Option<OperatorDirectives>,
    pub(crate) hash: ContentHash,
}

/// How an adapter behaves when it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Temper {
    Good,
    /// It ends the server.
    Deadly,
    /// vLLM refuses it for good.
    Broken,
    /// It loads and works, and ends the server when it is read again after it had to give way to others: its files are
    /// gone. Neither vLLM nor its lists tell of that before.
    Rotten,
}

/// How many adapters vLLM keeps in memory. All others are loaded all the same, and read from their files at each use.
const CACHED: usize = 2;

/// How often a sidecar reads who uses what: less often than ids have to be quiet.
const READING: SignedDuration = SignedDuration::from_secs(3);

#[derive(Debug, Clone)]
pub(crate) struct SimServer {
    pub(crate) name: String,
    /// How long it takes until a change of the ConfigMap is seen.
    pub(crate) lag: SignedDuration,
    pub(crate) load_time: SignedDuration,
    pub(crate) reachable: bool,
    /// Whether it is of another pool, and reads the same file.
    pub(crate) beside: bool,
    /// Until when its probe fails although nothing is wrong with it, and whether its sidecar is silent then too.
    blip: Option<(Timestamp, bool)>,
    unready_since: Option<Timestamp>,
    /// Since when it is down, and when it comes back.
    pub(crate) back_at: Option<Timestamp>,
    start: u32,
    pub(crate) ready: bool,
    seen: Content,
    coming: Vec<(Timestamp, Content)>,
    /// With the last use of each.
    pub(crate) loaded: BTreeMap<AdapterId, Option<Timestamp>>,
    /// What vLLM has in memory, the one that was used last at the end.
    cached: Vec<AdapterId>,
    /// When uses were read last, and what that reading showed of each.
    read_at: Option<Timestamp>,
    read: BTreeMap<AdapterId, Timestamp>,
    loading: Option<(AdapterId, Timestamp)>,
    /// Ids over which the server died, and when they are tried again; a pilot waits for the operator.
    died: BTreeMap<AdapterId, Option<Timestamp>>,
    quarantined: BTreeSet<AdapterId>,
    failed: BTreeSet<AdapterId>,
    /// Ids over which this server died, ever.
    pub(crate) deaths: BTreeSet<AdapterId>,
}

/// What a tick did that the world has to check.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) unloaded: Vec<AdapterId>,
    /// Ids that have been used since uses were read before.
    pub(crate) used: Vec<AdapterId>,
}

impl SimServer {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            lag: SignedDuration::from_millis(100),
            load_time: SignedDuration::from_millis(200),
            reachable: true,
            beside: false,
            blip: None,
            unready_since: None,
            back_at: None,
            start: 1,
            ready: true,
            seen: Content::default(),
            coming: Vec::new(),
            loaded: BTreeMap::new(),
            cached: Vec::new(),
            read_at: None,
            read: BTreeMap::new(),
            loading: None,
            died: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            failed: BTreeSet::new(),
            deaths: BTreeSet::new(),
        }
    }

    /// vLLM dies and comes back after a while, with nothing loaded.
    pub(crate) fn die(&mut self, now: Timestamp, for_a_while: SignedDuration) {
        if let Some((id, _)) = self.loading.take() {
            let pilot = self.seen.key.iter().flat_map(|key| &key.pilots);
            let pilot = pilot.into_iter().any(|pilot| pilot.id == id && pilot.pod == self.name);
            if self.died.contains_key(&id) {
                self.quarantined.insert(id.clone());
            }
            self.died.insert(id.clone(), (!pilot).then(|| now + SignedDuration::from_secs(10)));
            self.deaths.insert(id);
        }
        self.loaded.clear();
        self.cached.clear();
        self.ready = false;
        self.blip = None;
        self.back_at = Some(now + for_a_while);
    }

    /// Somebody sends a request to an adapter; nothing happens where it is not loaded.
    pub(crate) fn answer(&mut self, id: &AdapterId, now: Timestamp, temper: Temper) {
        let Some(used) = self.loaded.get_mut(id) else { return };
        *used = Some(now);
        if !self.cache(id) && temper == Temper::Rotten {
            self.die(now, SignedDuration::from_secs(3));
        }
    }

    /// It is in memory now, and the one that was used longest ago is not, where there is no room. Returns whether it was.
    fn cache(&mut self, id: &AdapterId) -> bool {
        let before = self.cached.iter().position(|cached| cached == id).map(|index| self.cached.remove(index));
        self.cached.push(id.clone());
        let surplus = self.cached.len().saturating_sub(CACHED);
        self.cached.drain(..surplus);
        before.is_some()
    }

    /// Its probe fails for a while; then it is Ready again as it is.
    pub(crate) fn blip(&mut self, end: Timestamp, silent: bool) {
        if self.ready {
            self.ready = false;
            self.blip = Some((end, silent));
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.back_at.is_none()
    }

    /// The ConfigMap changed.
    pub(crate) fn notice(&mut self, now: Timestamp, content: &Content) {
        self.coming.push((now + self.lag, content.clone()));
    }

    pub(crate) fn tick(&mut self, now: Timestamp, temper: impl Fn(&AdapterId) -> Temper) -> Done {
        while self.coming.first().is_some_and(|(at, _)| *at <= now) {
            let (_, content) = self.coming.remove(0);
            self.take_over(content);
        }
        let mut done = Done::default();
        if let Some(back) = self.back_at {
            if back > now {
                return done;
            }
            self.back_at = None;
            self.start += 1;
        }
        self.go_on_loading(now, temper);
        if self.is_up() {
            done.used = self.read_uses(now);
            done.unloaded = self.unload(now);
            self.begin_loading(now);
            match self.blip {
                Some((end, _)) if end > now => {}
                Some(_) => (self.blip, self.ready) = (None, true),
                None => self.ready |= self.may_be_ready(),
            }
        }
        self.unready_since = if self.ready { None } else { self.unready_since.or(Some(now)) };
        done
    }

    /// Now and then; a use is known from the reading that shows it.
    fn read_uses(&mut self, now: Timestamp) -> Vec<AdapterId> {
        if self.read_at.is_some_and(|read| now.duration_since(read) < READING) {
            return Vec::new();
        }
        let is_new = |used: &Option<Timestamp>| used.is_some_and(|used| self.read_at.is_none_or(|read| used > read));
        let used: Vec<AdapterId> =
            self.loaded.iter().filter(|(_, used)| is_new(used)).map(|(id, _)| id.clone()).collect();
        self.read.extend(used.iter().map(|id| (id.clone(), now)));
        self.read_at = Some(now);
        used
    }

    fn take_over(&mut self, content: Content) {
        let changed = |id: &AdapterId| {
            let admission = |content: &Content| content.key.as_ref().map(|key| key.admission(id, &self.name));
            admission(&self.seen) != admission(&content)
        };
        self.died.retain(|id, _| !changed(id));
        self.quarantined.retain(|id| !changed(id));
        self.failed = self.failed.iter().filter(|id| !changed(id)).cloned().collect();
        self.seen = content;
    }

    fn go_on_loading(&mut self, now: Timestamp, temper: impl Fn(&AdapterId) -> Temper) {
        let Some((id, end)) = self.loading.clone() else { return };
        if end > now {
            return;
        }
        match temper(&id) {
            Temper::Deadly => return self.die(now, SignedDuration::from_secs(3)),
            Temper::Broken => drop(self.failed.insert(id)),
            Temper::Good | Temper::Rotten => {
                self.died.remove(&id);
                self.cache(&id);
                self.loaded.insert(id, None);
            }
        }
        self.loading = None;
    }

    fn begin_loading(&mut self, now: Timestamp) {
        let listed = self.seen.file.ensure_exist.iter().filter(|entry| !self.is_unlisted(&entry.id));
        // What serves is loaded again even where the file unlists it.
        let held = self.seen.file.ensure_not_exist.iter().filter(|entry| self.is_serving(&entry.id));
        let next = listed.chain(held).map(|entry| &entry.id).find(|id| {
            let held = self.died.get(id).is_some_and(|until| until.is_none_or(|until| now < until));
            let known = self.loaded.contains_key(id) || self.quarantined.contains(id) || self.failed.contains(id);
            !known && !held && self.is_granted(id)
        });
        if let (None, Some(id)) = (&self.loading, next) {
            self.loading = Some((id.clone(), now + self.load_time));
        }
    }

    fn unload(&mut self, now: Timestamp) -> Vec<AdapterId> {
        let grace = SignedDuration::from_millis(500);
        let unwanted = |id: &AdapterId, used: &Option<Timestamp>| {
            let idle = used.is_none_or(|used| now.duration_since(used) > grace);
            let rejected = self.admission(id) == Admission::Rejected;
            idle && (self.is_unlisted(id) || rejected) && !self.is_serving(id) && !self.is_listed_twice(id)
        };
        let gone: Vec<AdapterId> =
            self.loaded.iter().filter(|(id, used)| unwanted(id, used)).map(|(id, _)| id.clone()).collect();
        for id in &gone {
            self.loaded.remove(id);
        }
        self.cached.retain(|cached| !gone.contains(cached));
        gone
    }

    /// After a start it waits for everything that is serving, also for what the file does not list any more.
    fn may_be_ready(&self) -> bool {
        let mut serving = self.seen.key.iter().flat_map(|key| &key.serving);
        serving.all(|id| self.loaded.contains_key(id) || self.admission(id) == Admission::Rejected)
    }

    fn admission(&self, id: &AdapterId) -> Admission {
        self.seen.key.as_ref().map_or(Admission::Granted, |key| key.admission(id, &self.name))
    }

    fn is_granted(&self, id: &AdapterId) -> bool {
        self.admission(id) == Admission::Granted
    }

    fn is_serving(&self, id: &AdapterId) -> bool {
        self.seen.key.as_ref().is_some_and(|key| key.serving.contains(id))
    }

    fn is_unlisted(&self, id: &AdapterId) -> bool {
        self.seen.file.ensure_not_exist.iter().any(|entry| entry.id == *id)
    }

    fn is_listed(&self, id: &AdapterId) -> bool {
        self.seen.file.ensure_exist.iter().any(|entry| entry.id == *id)
    }

    fn is_listed_twice(&self, id: &AdapterId) -> bool {
        self.is_listed(id) && self.is_unlisted(id)
    }

    /// What the Fleet port says of it.
    pub(crate) fn report(&self) -> Server {
        let silent = self.blip.is_some_and(|(_, silent)| silent) || !self.reachable;
        let status = if silent { Err("no answer".to_owned()) } else { Ok(self.status().into()) };
        Server {
            name: self.name.clone(),
            uid: self.name.clone(),
            ready: self.ready,
            unready_since: self.unready_since,
            leaving: false,
            status,
        }
    }

    fn status(&self) -> SidecarStatus {
        let identity = ServerIdentity { endpoint: self.name.clone(), start: self.start.to_string() };
        let listed = self.seen.file.ensure_exist.iter().chain(&self.seen.file.ensure_not_exist);
        let ids: BTreeSet<&AdapterId> = listed.map(|entry| &entry.id).chain(self.loaded.keys()).collect();
        SidecarStatus {
            server: self.is_up().then_some(identity),
            readiness: self.readiness(),
            config: ConfigStatus {
                hash: Some(self.seen.hash.clone()),
                operator_directives: self.seen.key.is_some(),
                error: None,
            },
            base_models: vec!["base".to_owned()],
            adapters: ids.into_iter().map(|id| self.adapter(id)).collect(),
            problem: None,
            max_loras: None,
            usage_read_at: self.read_at,
        }
    }

    fn readiness(&self) -> ReadinessStatus {
        let reason = match () {
            () if self.ready || self.blip.is_some() => "Ready",
            () if !self.may_be_ready() => ADAPTERS_NOT_VERIFIED,
            () => "Starting",
        };
        ReadinessStatus { ready: reason == "Ready", reason: reason.to_owned(), message: String::new() }
    }

    fn adapter(&self, id: &AdapterId) -> AdapterStatus {
        let problem = |reason: &str, message: &str| {
            Some(Box::new(ReportedError { reason: reason.to_owned(), message: message.to_owned() }))
        };
        let last_error = match () {
            () if self.died.contains_key(id) => problem("ServerDied", "vLLM ended"),
            () if self.failed.contains(id) => problem("RankTooHigh", "rank 32 is above 16"),
            () => None,
        };
        AdapterStatus {
            attempts: u32::from(last_error.is_some()),
            last_error,
            next_try: self.died.get(id).copied().flatten(),
            last_used: self.read.get(id).copied(),
            ..AdapterStatus::new(id.clone(), self.state(id))
        }
    }

    fn state(&self, id: &AdapterId) -> AdapterState {
        let loaded = self.loaded.contains_key(id);
        let rejected = self.admission(id) == Admission::Rejected;
        match () {
            () if self.is_listed_twice(id) => AdapterState::InBothLists,
            () if loaded && (self.is_unlisted(id) || rejected) && self.is_serving(id) => AdapterState::UnloadHeld,
            () if loaded && (self.is_unlisted(id) || rejected) => AdapterState::Unloading,
            () if loaded && !self.is_listed(id) => AdapterState::Unlisted,
            () if loaded => AdapterState::Verified,
            () if rejected => AdapterState::Rejected,
            () if self.quarantined.contains(id) => AdapterState::Quarantined,
            () if self.died.contains_key(id) => AdapterState::ServerDied,
            () if self.failed.contains(id) => AdapterState::Failed,
            () if self.is_unlisted(id) => AdapterState::Gone,
            () if self.loading.as_ref().is_some_and(|(loading, _)| loading == id) => AdapterState::Loading,
            () if !self.is_granted(id) => AdapterState::AwaitingAdmission,
            () => AdapterState::Pending,
        }
    }
}
