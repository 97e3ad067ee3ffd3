//! One vLLM server with its sidecar, as far as the operator can observe them.

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

/// The ConfigMap content that a sidecar has read.
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
    /// It crashes the server.
    CrashesOnLoad,
    /// vLLM permanently refuses it.
    FailsToLoad,
    /// It loads and works, but crashes the server when it is read again after an eviction, because its files are gone.
    /// Neither vLLM nor its model list shows this before.
    CrashesOnReload,
}

/// Number of adapters that vLLM keeps in memory. Others are loaded too, and read from their files at each use.
const MAX_CPU_LORAS: usize = 2;

/// Interval at which a sidecar reads usage: longer than the time for which ids must be idle.
const USAGE_POLL_INTERVAL: SignedDuration = SignedDuration::from_secs(3);

#[derive(Debug, Clone)]
pub(crate) struct SimServer {
    pub(crate) name: String,
    /// Delay until the sidecar observes a change of the ConfigMap.
    pub(crate) lag: SignedDuration,
    pub(crate) load_time: SignedDuration,
    pub(crate) reachable: bool,
    /// Whether it belongs to another pool that reads the same file.
    pub(crate) in_other_pool: bool,
    /// End of a failure of its readiness probe while it works, and whether its sidecar does not respond either.
    probe_failure: Option<(Timestamp, bool)>,
    unready_since: Option<Timestamp>,
    /// When it comes back, if it has crashed.
    pub(crate) back_at: Option<Timestamp>,
    start_count: u32,
    pub(crate) ready: bool,
    content: ConfigContent,
    pending: Vec<(Timestamp, ConfigContent)>,
    /// Loaded adapters with the last use of each.
    pub(crate) loaded: BTreeMap<AdapterId, Option<Timestamp>>,
    /// Adapters in vLLM's memory, the least recently used one first.
    cached: Vec<AdapterId>,
    /// When usage was read last, and the last use of each adapter that was observed.
    usage_polled_at: Option<Timestamp>,
    polled_uses: BTreeMap<AdapterId, Timestamp>,
    loading: Option<(AdapterId, Timestamp)>,
    /// Ids that crashed the server, and when they are tried again; `None` if a pilot waits for the operator.
    crashed_on: BTreeMap<AdapterId, Option<Timestamp>>,
    quarantined: BTreeSet<AdapterId>,
    failed: BTreeSet<AdapterId>,
    /// Ids that ever crashed this server.
    pub(crate) crash_ids: BTreeSet<AdapterId>,
}

/// Results of a tick that the world checks.
#[derive(Debug, Default)]
pub(crate) struct TickResult {
    pub(crate) unloaded: Vec<AdapterId>,
    /// Ids that were used between the last two reads of usage.
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

    /// Crashes vLLM; it restarts after `duration` with nothing loaded.
    pub(crate) fn crash(&mut self, now: Timestamp, duration: SignedDuration) {
        if let Some((id, _)) = self.loading.take() {
            let pilot = self.content.directives.iter().flat_map(|directives| &directives.pilots);
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
        self.back_at = Some(now + duration);
    }

    /// Handles a request for an adapter; does nothing if it is not loaded.
    pub(crate) fn handle_request(&mut self, id: &AdapterId, now: Timestamp, behavior: AdapterBehavior) {
        let Some(used) = self.loaded.get_mut(id) else { return };
        *used = Some(now);
        if !self.touch_cache(id) && behavior == AdapterBehavior::CrashesOnReload {
            self.crash(now, SignedDuration::from_secs(3));
        }
    }

    /// Moves an adapter to the end of the LRU order and evicts the surplus. Returns whether it was in memory before.
    fn touch_cache(&mut self, id: &AdapterId) -> bool {
        let before = self.cached.iter().position(|cached| cached == id).map(|index| self.cached.remove(index));
        self.cached.push(id.clone());
        let surplus = self.cached.len().saturating_sub(MAX_CPU_LORAS);
        self.cached.drain(..surplus);
        before.is_some()
    }

    /// Lets the readiness probe fail until `end`; then the server is Ready again with its adapters.
    pub(crate) fn fail_probe(&mut self, end: Timestamp, silent: bool) {
        if self.ready {
            self.ready = false;
            self.probe_failure = Some((end, silent));
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.back_at.is_none()
    }

    /// Delivers a change of the ConfigMap after the sidecar's lag.
    pub(crate) fn receive_content(&mut self, now: Timestamp, content: &ConfigContent) {
        self.pending.push((now + self.lag, content.clone()));
    }

    pub(crate) fn tick(&mut self, now: Timestamp, behavior: impl Fn(&AdapterId) -> AdapterBehavior) -> TickResult {
        while self.pending.first().is_some_and(|(at, _)| *at <= now) {
            let (_, content) = self.pending.remove(0);
            self.apply_content(content);
        }
        let mut result = TickResult::default();
        if let Some(restart_at) = self.back_at {
            if restart_at > now {
                return result;
            }
            self.back_at = None;
            self.start_count += 1;
        }
        self.continue_loading(now, behavior);
        if self.is_up() {
            result.used = self.poll_usage(now);
            result.unloaded = self.unload(now);
            self.start_loading(now);
            match self.probe_failure {
                Some((end, _)) if end > now => {}
                Some(_) => (self.probe_failure, self.ready) = (None, true),
                None => self.ready |= self.has_serving_loaded(),
            }
        }
        self.unready_since = if self.ready { None } else { self.unready_since.or(Some(now)) };
        result
    }

    /// Reads usage if the interval has passed; a use is only known once it was read.
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
            let admission = |content: &ConfigContent| {
                content.directives.as_ref().map(|directives| directives.admission(id, &self.name))
            };
            admission(&self.content) != admission(&content)
        };
        self.crashed_on.retain(|id, _| !changed(id));
        self.quarantined.retain(|id| !changed(id));
        self.failed = self.failed.iter().filter(|id| !changed(id)).cloned().collect();
        self.content = content;
    }

    fn continue_loading(&mut self, now: Timestamp, behavior: impl Fn(&AdapterId) -> AdapterBehavior) {
        let Some((id, end)) = self.loading.clone() else { return };
        if end > now {
            return;
        }
        match behavior(&id) {
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
        // An adapter that serves is loaded again even if the file unlists it.
        let held = self.content.file.ensure_not_exist.iter().filter(|entry| self.is_serving(&entry.id));
        let next = listed.chain(held).map(|entry| &entry.id).find(|id| {
            let held = self.crashed_on.get(id).is_some_and(|until| until.is_none_or(|until| now < until));
            let is_known = self.loaded.contains_key(id) || self.quarantined.contains(id) || self.failed.contains(id);
            !is_known && !held && self.is_granted(id)
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
        let unloaded: Vec<AdapterId> =
            self.loaded.iter().filter(|(id, used)| unwanted(id, used)).map(|(id, _)| id.clone()).collect();
        for id in &unloaded {
            self.loaded.remove(id);
        }
        self.cached.retain(|cached| !unloaded.contains(cached));
        unloaded
    }

    /// After a start the server waits for every serving adapter, also for those that the file does not list anymore.
    fn has_serving_loaded(&self) -> bool {
        let mut serving = self.content.directives.iter().flat_map(|directives| &directives.serving);
        serving.all(|id| self.loaded.contains_key(id) || self.admission(id) == Admission::Rejected)
    }

    fn admission(&self, id: &AdapterId) -> Admission {
        self.content.directives.as_ref().map_or(Admission::Granted, |directives| directives.admission(id, &self.name))
    }

    fn is_granted(&self, id: &AdapterId) -> bool {
        self.admission(id) == Admission::Granted
    }

    fn is_serving(&self, id: &AdapterId) -> bool {
        self.content.directives.as_ref().is_some_and(|directives| directives.serving.contains(id))
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

    /// Returns the server as the port `Fleet` reports it.
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
