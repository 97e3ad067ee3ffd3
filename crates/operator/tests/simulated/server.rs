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
use rollora_operator::ports::ObservedServer;
use std::collections::{BTreeMap, BTreeSet};

/// What a sidecar has read of the ConfigMap.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ConfigContent {
    pub(crate) file: AdaptersFile,
    pub(crate) directives: Option<OperatorDirectives>,
    pub(crate) hash: ContentHash,
}

/// How an adapter behaves when it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdapterBehavior {
    Good,
    /// It ends the server.
    CrashesOnLoad,
    /// vLLM refuses it for good.
    FailsToLoad,
    /// It loads and works, and ends the server when it is read again after it had to give way to others: its files are
    /// gone. Neither vLLM nor its lists tell of that before.
    CrashesOnReload,
}

/// How many adapters vLLM keeps in memory. All others are loaded all the same, and read from their files at each use.
const MAX_CPU_LORAS: usize = 2;

/// How often a sidecar reads who uses what: less often than ids have to be quiet.
const USAGE_POLL_INTERVAL: SignedDuration = SignedDuration::from_secs(3);

#[derive(Debug, Clone)]
pub(crate) struct SimServer {
    pub(crate) name: String,
    /// How long it takes until a change of the ConfigMap is seen.
    pub(crate) lag: SignedDuration,
    pub(crate) load_time: SignedDuration,
    pub(crate) reachable: bool,
    /// Whether it is of another pool, and reads the same file.
    pub(crate) in_other_pool: bool,
    /// Until when its probe fails although nothing is wrong with it, and whether its sidecar is silent then too.
    probe_failure: Option<(Timestamp, bool)>,
    unready_since: Option<Timestamp>,
    /// Since when it is down, and when it comes back.
    pub(crate) back_at: Option<Timestamp>,
    start_count: u32,
    pub(crate) ready: bool,
    content: ConfigContent,
    pending: Vec<(Timestamp, ConfigContent)>,
    /// With the last use of each.
    pub(crate) loaded: BTreeMap<AdapterId, Option<Timestamp>>,
    /// What vLLM has in memory, the one that was used last at the end.
    cached: Vec<AdapterId>,
    /// When uses were read last, and what that reading showed of each.
    usage_polled_at: Option<Timestamp>,
    polled_uses: BTreeMap<AdapterId, Timestamp>,
    loading: Option<(AdapterId, Timestamp)>,
    /// Ids over which the server died, and when they are tried again; a pilot waits for the operator.
    crashed_on: BTreeMap<AdapterId, Option<Timestamp>>,
    quarantined: BTreeSet<AdapterId>,
    failed: BTreeSet<AdapterId>,
    /// Ids over which this server died, ever.
    pub(crate) crash_ids: BTreeSet<AdapterId>,
}

/// What a tick did that the world has to check.
#[derive(Debug, Default)]
pub(crate) struct TickResult {
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
            in_other_pool: false,
            probe_failure: None,
            unready_since: None,
            back_at: None,
            start_count: 1,
            ready: true,
            content: ConfigContent::default(),
            pending: Vec::new(),
            loaded: BTreeMap::new(),
            cached: Vec::new(),
            usage_polled_at: None,
            polled_uses: BTreeMap::new(),
            loading: None,
            crashed_on: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            failed: BTreeSet::new(),
            crash_ids: BTreeSet::new(),
        }
    }

    /// vLLM dies and comes back after a while, with nothing loaded.
    pub(crate) fn crash(&mut self, now: Timestamp, for_a_while: SignedDuration) {
        if let Some((id, _)) = self.loading.take() {
            let pilot = self.content.directives.iter().flat_map(|key| &key.pilots);
            let pilot = pilot.into_iter().any(|pilot| pilot.id == id && pilot.pod == self.name);
            if self.crashed_on.contains_key(&id) {
                self.quarantined.insert(id.clone());
            }
            self.crashed_on.insert(id.clone(), (!pilot).then(|| now + SignedDuration::from_secs(10)));
            self.crash_ids.insert(id);
        }
        self.loaded.clear();
        self.cached.clear();
        self.ready = false;
        self.probe_failure = None;
        self.back_at = Some(now + for_a_while);
    }

    /// Somebody sends a request to an adapter; nothing happens where it is not loaded.
    pub(crate) fn handle_request(&mut self, id: &AdapterId, now: Timestamp, temper: AdapterBehavior) {
        let Some(used) = self.loaded.get_mut(id) else { return };
        *used = Some(now);
        if !self.touch_cache(id) && temper == AdapterBehavior::CrashesOnReload {
            self.crash(now, SignedDuration::from_secs(3));
        }
    }

    /// It is in memory now, and the one that was used longest ago is not, where there is no room. Returns whether it was.
    fn touch_cache(&mut self, id: &AdapterId) -> bool {
        let before = self.cached.iter().position(|cached| cached == id).map(|index| self.cached.remove(index));
        self.cached.push(id.clone());
        let surplus = self.cached.len().saturating_sub(MAX_CPU_LORAS);
        self.cached.drain(..surplus);
        before.is_some()
    }

    /// Its probe fails for a while; then it is Ready again as it is.
    pub(crate) fn fail_probe(&mut self, end: Timestamp, silent: bool) {
        if self.ready {
            self.ready = false;
            self.probe_failure = Some((end, silent));
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.back_at.is_none()
    }

    /// The ConfigMap changed.
    pub(crate) fn receive_content(&mut self, now: Timestamp, content: &ConfigContent) {
        self.pending.push((now + self.lag, content.clone()));
    }

    pub(crate) fn tick(&mut self, now: Timestamp, temper: impl Fn(&AdapterId) -> AdapterBehavior) -> TickResult {
        while self.pending.first().is_some_and(|(at, _)| *at <= now) {
            let (_, content) = self.pending.remove(0);
            self.apply_content(content);
        }
        let mut done = TickResult::default();
        if let Some(back) = self.back_at {
            if back > now {
                return done;
            }
            self.back_at = None;
            self.start_count += 1;
        }
        self.continue_loading(now, temper);
        if self.is_up() {
            done.used = self.poll_usage(now);
            done.unloaded = self.unload(now);
            self.start_loading(now);
            match self.probe_failure {
                Some((end, _)) if end > now => {}
                Some(_) => (self.probe_failure, self.ready) = (None, true),
                None => self.ready |= self.has_serving_loaded(),
            }
        }
        self.unready_since = if self.ready { None } else { self.unready_since.or(Some(now)) };
        done
    }

    /// Now and then; a use is known from the reading that shows it.
    fn poll_usage(&mut self, now: Timestamp) -> Vec<AdapterId> {
        if self.usage_polled_at.is_some_and(|read| now.duration_since(read) < USAGE_POLL_INTERVAL) {
            return Vec::new();
        }
        let is_new =
            |used: &Option<Timestamp>| used.is_some_and(|used| self.usage_polled_at.is_none_or(|read| used > read));
        let used: Vec<AdapterId> =
            self.loaded.iter().filter(|(_, used)| is_new(used)).map(|(id, _)| id.clone()).collect();
        self.polled_uses.extend(used.iter().map(|id| (id.clone(), now)));
        self.usage_polled_at = Some(now);
        used
    }

    fn apply_content(&mut self, content: ConfigContent) {
        let changed = |id: &AdapterId| {
            let admission =
                |content: &ConfigContent| content.directives.as_ref().map(|key| key.admission(id, &self.name));
            admission(&self.content) != admission(&content)
        };
        self.crashed_on.retain(|id, _| !changed(id));
        self.quarantined.retain(|id| !changed(id));
        self.failed = self.failed.iter().filter(|id| !changed(id)).cloned().collect();
        self.content = content;
    }

    fn continue_loading(&mut self, now: Timestamp, temper: impl Fn(&AdapterId) -> AdapterBehavior) {
        let Some((id, end)) = self.loading.clone() else { return };
        if end > now {
            return;
        }
        match temper(&id) {
            AdapterBehavior::CrashesOnLoad => return self.crash(now, SignedDuration::from_secs(3)),
            AdapterBehavior::FailsToLoad => drop(self.failed.insert(id)),
            AdapterBehavior::Good | AdapterBehavior::CrashesOnReload => {
                self.crashed_on.remove(&id);
                self.touch_cache(&id);
                self.loaded.insert(id, None);
            }
        }
        self.loading = None;
    }

    fn start_loading(&mut self, now: Timestamp) {
        let listed = self.content.file.ensure_exist.iter().filter(|entry| !self.is_unlisted(&entry.id));
        // What serves is loaded again even where the file unlists it.
        let held = self.content.file.ensure_not_exist.iter().filter(|entry| self.is_serving(&entry.id));
        let next = listed.chain(held).map(|entry| &entry.id).find(|id| {
            let held = self.crashed_on.get(id).is_some_and(|until| until.is_none_or(|until| now < until));
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
    fn has_serving_loaded(&self) -> bool {
        let mut serving = self.content.directives.iter().flat_map(|key| &key.serving);
        serving.all(|id| self.loaded.contains_key(id) || self.admission(id) == Admission::Rejected)
    }

    fn admission(&self, id: &AdapterId) -> Admission {
        self.content.directives.as_ref().map_or(Admission::Granted, |key| key.admission(id, &self.name))
    }

    fn is_granted(&self, id: &AdapterId) -> bool {
        self.admission(id) == Admission::Granted
    }

    fn is_serving(&self, id: &AdapterId) -> bool {
        self.content.directives.as_ref().is_some_and(|key| key.serving.contains(id))
    }

    fn is_unlisted(&self, id: &AdapterId) -> bool {
        self.content.file.ensure_not_exist.iter().any(|entry| entry.id == *id)
    }

    fn is_listed(&self, id: &AdapterId) -> bool {
        self.content.file.ensure_exist.iter().any(|entry| entry.id == *id)
    }

    fn is_listed_twice(&self, id: &AdapterId) -> bool {
        self.is_listed(id) && self.is_unlisted(id)
    }

    /// What the Fleet port says of it.
    pub(crate) fn report(&self) -> ObservedServer {
        let silent = self.probe_failure.is_some_and(|(_, silent)| silent) || !self.reachable;
        let status = if silent { Err("no answer".to_owned()) } else { Ok(self.status().into()) };
        ObservedServer {
            name: self.name.clone(),
            uid: self.name.clone(),
            ready: self.ready,
            unready_since: self.unready_since,
            terminating: false,
            status,
        }
    }

    fn status(&self) -> SidecarStatus {
        let identity = ServerIdentity { endpoint: self.name.clone(), start: self.start_count.to_string() };
        let listed = self.content.file.ensure_exist.iter().chain(&self.content.file.ensure_not_exist);
        let ids: BTreeSet<&AdapterId> = listed.map(|entry| &entry.id).chain(self.loaded.keys()).collect();
        SidecarStatus {
            server: self.is_up().then_some(identity),
            readiness: self.readiness(),
            config: ConfigStatus {
                hash: Some(self.content.hash.clone()),
                operator_directives: self.content.directives.is_some(),
                error: None,
            },
            base_models: vec!["base".to_owned()],
            adapters: ids.into_iter().map(|id| self.adapter_status(id)).collect(),
            problem: None,
            max_loras: None,
            usage_read_at: self.usage_polled_at,
        }
    }

    fn readiness(&self) -> ReadinessStatus {
        let reason = match () {
            () if self.ready || self.probe_failure.is_some() => "Ready",
            () if !self.has_serving_loaded() => ADAPTERS_NOT_VERIFIED,
            () => "Starting",
        };
        ReadinessStatus { ready: reason == "Ready", reason: reason.to_owned(), message: String::new() }
    }

    fn adapter_status(&self, id: &AdapterId) -> AdapterStatus {
        let problem = |reason: &str, message: &str| {
            Some(Box::new(ReportedError { reason: reason.to_owned(), message: message.to_owned() }))
        };
        let last_error = match () {
            () if self.crashed_on.contains_key(id) => problem("ServerDied", "vLLM ended"),
            () if self.failed.contains(id) => problem("RankTooHigh", "rank 32 is above 16"),
            () => None,
        };
        AdapterStatus {
            attempts: u32::from(last_error.is_some()),
            last_error,
            next_try: self.crashed_on.get(id).copied().flatten(),
            last_used: self.polled_uses.get(id).copied(),
            ..AdapterStatus::new(id.clone(), self.adapter_state(id))
        }
    }

    fn adapter_state(&self, id: &AdapterId) -> AdapterState {
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
            () if self.crashed_on.contains_key(id) => AdapterState::ServerDied,
            () if self.failed.contains(id) => AdapterState::Failed,
            () if self.is_unlisted(id) => AdapterState::Gone,
            () if self.loading.as_ref().is_some_and(|(loading, _)| loading == id) => AdapterState::Loading,
            () if !self.is_granted(id) => AdapterState::AwaitingAdmission,
            () => AdapterState::Pending,
        }
    }
}
