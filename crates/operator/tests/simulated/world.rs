//! The simulated world: documents, servers, routers and clients, with checks of the invariants.

use crate::{
    history::DocumentSnapshot,
    invariants::Violation,
    other_rollout::{OtherRollout, matches_model},
    server::{AdapterBehavior, ConfigContent, SimServer},
};
use jiff::{SignedDuration, Timestamp};
use rollora_api::{
    adapters::{AdaptersFile, content_hash},
    names::{AdapterId, INTENT_ANNOTATION, ModelName, SEQUENCE_ANNOTATION_PREFIX},
    operator_directives::OperatorDirectives,
    rewrite::{InferenceModelRewrite, RewriteRule},
    rollout::{IntentKind, Rollout, RolloutStatus, status::Phase},
    router_report::{ActiveRule, RulesReport},
};
use rollora_operator::ports::{
    AdaptersDocument, AdaptersWrite, ObservedRouter, ObservedServer, ResourceVersion, RolloutEvent, WriteOutcome,
};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    sync::{Arc, Mutex},
};

pub(crate) const TICK: SignedDuration = SignedDuration::from_millis(100);

/// Fault of one port call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Unavailable,
    Hang,
    /// The call takes effect, but its response is lost.
    LostResponse,
    /// The operator crashes before the call, or after it took effect.
    CrashBefore,
    CrashAfter,
}

#[derive(Debug, Clone)]
pub(crate) struct SimRouter {
    pub(crate) name: String,
    pub(crate) lag: SignedDuration,
    pub(crate) reachable: bool,
    pub(crate) rules: Vec<InferenceModelRewrite>,
    pub(crate) pending: Vec<(Timestamp, Vec<InferenceModelRewrite>)>,
    pub(crate) last_used: BTreeMap<String, Timestamp>,
    pub(crate) next_request: usize,
}

impl SimRouter {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            lag: SignedDuration::ZERO,
            reachable: true,
            rules: Vec::new(),
            pending: Vec::new(),
            last_used: BTreeMap::new(),
            next_request: 0,
        }
    }

    fn rule_for(&self, model: &ModelName) -> Option<(&InferenceModelRewrite, &RewriteRule)> {
        let rule =
            |rewrite: &InferenceModelRewrite| rewrite.spec.rules.iter().position(|rule| matches_model(model, rule));
        self.rules.iter().find_map(|rewrite| Some((rewrite, &rewrite.spec.rules[rule(rewrite)?])))
    }

    /// Returns the adapters that get requests from this router.
    pub(crate) fn targets(&self, models: &[ModelName]) -> Vec<AdapterId> {
        let targets = models.iter().filter_map(|model| self.rule_for(model)).flat_map(|(_, rule)| &rule.targets);
        targets.map(|target| AdapterId::new(target.model_rewrite.clone()).unwrap()).collect()
    }

    fn report(&self, models: &[ModelName]) -> RulesReport {
        let mut report = RulesReport { last_used: self.last_used.clone(), ..RulesReport::default() };
        for model in models {
            let Some((rewrite, rule)) = self.rule_for(model) else { continue };
            let stamps = rewrite.metadata.annotations.iter().filter_map(|(name, value)| {
                Some((name.strip_prefix(SEQUENCE_ANNOTATION_PREFIX)?.to_owned(), value.parse().ok()?))
            });
            let rule = ActiveRule {
                group: "llm-d.ai".to_owned(),
                rewrite: rewrite.metadata.name.clone(),
                uid: rewrite.metadata.uid.clone().unwrap_or_default(),
                stamps: stamps.collect(),
                targets: rule.targets.clone(),
            };
            report.models.insert(model.as_str().to_owned(), rule);
        }
        report
    }
}

/// Parts of the configuration that a person must fix.
#[derive(Debug, Clone, Default)]
pub(crate) struct Misconfiguration {
    /// Whether the adapters ConfigMap is missing.
    pub(crate) adapters: bool,
    /// Error of reads of the adapters ConfigMap, if it exists but cannot be used.
    pub(crate) adapters_problem: Option<String>,
    /// Error of reads of the pool's servers.
    pub(crate) pool: Option<String>,
    /// Error of reads of rewrites.
    pub(crate) rewrites: Option<String>,
    /// Error of writes of rewrites.
    pub(crate) write_permission: Option<String>,
}

/// Log of the run. Separate from the world, because failed assertions print it while the world is locked.
#[derive(Debug, Default)]
pub(crate) struct WorldLog(Arc<Mutex<Vec<String>>>);

impl Clone for WorldLog {
    /// Returns an independent log that starts with the same content.
    fn clone(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }
}

impl WorldLog {
    pub(crate) fn clone_handle(&self) -> Arc<Self> {
        Arc::new(Self(Arc::clone(&self.0)))
    }

    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) rollout: Rollout,
    pub(crate) rollout_version: u64,
    pub(crate) rewrites: Vec<(InferenceModelRewrite, u64)>,
    pub(crate) adapters: AdaptersDocument,
    pub(crate) adapters_version: u64,
    /// Name of the adapters file that servers read, and the files that no server reads.
    pub(crate) file_name: String,
    pub(crate) unread_files: BTreeMap<String, (AdaptersDocument, u64)>,
    pub(crate) servers: Vec<SimServer>,
    pub(crate) routers: Vec<SimRouter>,
    pub(crate) behaviors: BTreeMap<AdapterId, AdapterBehavior>,
    pub(crate) events: Vec<RolloutEvent>,
    /// Faults of the next calls of any kind, and of the next writes.
    pub(crate) faults: VecDeque<Fault>,
    pub(crate) write_faults: VecDeque<Fault>,
    pub(crate) writes: usize,
    pub(crate) fleet_hangs: bool,
    /// Whether the Rollout was removed from the store.
    pub(crate) deleted: bool,
    /// Permanent configuration errors, with their messages.
    pub(crate) misconfiguration: Misconfiguration,
    /// Whether something changed that the store would deliver.
    pub(crate) changed: bool,
    /// Violations of invariants so far.
    pub(crate) violations: Vec<Violation>,
    /// Weights that each sequence was written with.
    pub(crate) weights_by_sequence: BTreeMap<i64, Vec<(String, i32)>>,
    /// Every state of the documents, if operators read them with a lag.
    pub(crate) history: Option<Vec<Arc<DocumentSnapshot>>>,
    pub(crate) status_writes: usize,
    pub(crate) weight_history: Vec<Vec<(String, i32)>>,
    pub(crate) log: WorldLog,
    pub(crate) versions: u64,
    uids: u64,
    intents: u64,
    started: Timestamp,
    /// Candidate weights that the steps allow.
    pub(crate) planned_weights: Vec<i32>,
    /// Weights that were served without a status: adoption leaves them as they are.
    pub(crate) adoptable_weights: Vec<Vec<(String, i32)>>,
    pub(crate) loss_allowed: Vec<AdapterId>,
    /// Edit of the rewrite by another writer after each write of the operator, before the next reconcile.
    pub(crate) rival: Option<fn(&mut InferenceModelRewrite)>,
    /// State of the other Rollout, if there are two.
    pub(crate) other_rollout: Option<OtherRollout>,
    /// Reports of the servers at the last tick.
    last_reports: Vec<ObservedServer>,
    /// When a client last sent a request for each adapter.
    pub(crate) last_uses: BTreeMap<AdapterId, Timestamp>,
}

pub(crate) fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

fn behavior_of(behaviors: &BTreeMap<AdapterId, AdapterBehavior>, id: &AdapterId) -> AdapterBehavior {
    behaviors.get(id).copied().unwrap_or(AdapterBehavior::Good)
}

/// Returns the weights that a Rollout's steps set.
pub(crate) fn planned_weights(rollout: &Rollout) -> Vec<i32> {
    rollout.spec.strategy.steps.iter().filter_map(|step| step.set_weight).collect()
}

/// Returns an adapters file with these lists.
pub(crate) fn adapters_yaml(exist: &[&str], not_exist: &[&str]) -> String {
    let mut text = String::from("vLLMLoRAConfig:\n  name: test\n");
    for (list, ids) in [("ensureExist", exist), ("ensureNotExist", not_exist)] {
        if ids.is_empty() {
            continue;
        }
        write!(text, "  {list}:\n    models:\n").unwrap();
        for id in ids {
            write!(text, "    - id: {id} # comment of {id}\n      source: org/{id}\n").unwrap();
        }
    }
    text
}

impl World {
    pub(crate) fn new(rollout: &str, servers: usize, exist: &[&str]) -> Self {
        let mut rollout: Rollout = Rollout::from_yaml(rollout).unwrap();
        rollout.metadata.uid = Some("uid-of-rollout".to_owned());
        rollout.metadata.generation = Some(1);
        let file_name = rollout.spec.adapters_ref.name.clone();
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let planned = planned_weights(&rollout);
        let mut world = Self {
            now,
            rollout,
            rollout_version: 1,
            rewrites: Vec::new(),
            adapters: AdaptersDocument { user_text: adapters_yaml(exist, &[]), ..AdaptersDocument::default() },
            adapters_version: 1,
            file_name,
            unread_files: BTreeMap::new(),
            servers: (0..servers).map(|index| SimServer::new(&format!("server-{index}"))).collect(),
            routers: vec![SimRouter::new("router-0")],
            behaviors: BTreeMap::new(),
            events: Vec::new(),
            faults: VecDeque::new(),
            write_faults: VecDeque::new(),
            writes: 0,
            fleet_hangs: false,
            deleted: false,
            misconfiguration: Misconfiguration::default(),
            changed: true,
            violations: Vec::new(),
            weights_by_sequence: BTreeMap::new(),
            history: None,
            status_writes: 0,
            weight_history: Vec::new(),
            log: WorldLog::default(),
            versions: 1,
            uids: 0,
            intents: 0,
            started: now,
            planned_weights: planned,
            adoptable_weights: Vec::new(),
            loss_allowed: Vec::new(),
            rival: None,
            other_rollout: None,
            last_reports: Vec::new(),
            last_uses: BTreeMap::new(),
        };
        // The directives exist before the sidecars start, as on a cluster that is already running.
        let directives = OperatorDirectives { managed: vec!["small-v*".to_owned()], ..OperatorDirectives::default() };
        world.adapters.directives_text = Some(directives.to_yaml());
        let content = world.config_content();
        for server in &mut world.servers {
            server.receive_content(now - server.lag, &content);
        }
        world
    }

    pub(crate) fn next_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    pub(crate) fn next_uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    pub(crate) fn status(&self) -> RolloutStatus {
        self.rollout.status.clone().unwrap_or_default()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.status().phase
    }

    pub(crate) fn log_event(&mut self, what: impl AsRef<str>) {
        let at = self.now.duration_since(self.started).as_millis();
        self.log.push(format!("{at:>7} ms  {}", what.as_ref()));
    }

    fn config_content(&self) -> ConfigContent {
        let directives = self.adapters.directives_text.as_deref().map(|text| OperatorDirectives::parse(text).unwrap());
        ConfigContent {
            file: AdaptersFile::parse(&self.adapters.user_text).map(|parsed| parsed.file).unwrap_or_default(),
            directives,
            hash: content_hash(&self.adapters.user_text, self.adapters.directives_text.as_deref()),
        }
    }

    /// Writes the adapters ConfigMap, and delivers it to the servers.
    pub(crate) fn write_adapters(&mut self, user_text: Option<String>, directives_text: Option<String>) -> u64 {
        if let Some(text) = user_text {
            self.adapters.user_text = text;
        }
        if directives_text.is_some() {
            self.adapters.directives_text = directives_text;
        }
        self.adapters_version = self.next_version();
        self.changed = true;
        let (now, content) = (self.now, self.config_content());
        // A file that cannot be parsed changes nothing: the last valid one stays active.
        if AdaptersFile::parse(&self.adapters.user_text).is_ok() {
            for server in &mut self.servers {
                server.receive_content(now, &content);
            }
        }
        self.adapters_version
    }

    /// Sets the GitOps owner of the ConfigMap.
    pub(crate) fn set_gitops_owner(&mut self, owner: Option<&str>) {
        self.adapters.gitops_owner = owner.map(str::to_owned);
        self.write_adapters(None, None);
    }

    /// A person edits both lists.
    pub(crate) fn list_adapters(&mut self, exist: &[&str], not_exist: &[&str]) {
        self.log_event(format!("a person lists {exist:?} and unlists {not_exist:?}"));
        self.write_adapters(Some(adapters_yaml(exist, not_exist)), None);
    }

    pub(crate) fn adapters_file(&self) -> AdaptersFile {
        AdaptersFile::parse(&self.adapters.user_text).unwrap().file
    }

    /// Lets servers read another adapters file with the same lists; the old one stays unchanged.
    pub(crate) fn switch_adapters_file(&mut self, name: &str) {
        self.log_event(format!("servers read the file {name}"));
        let user_text = self.adapters.user_text.clone();
        let old = std::mem::take(&mut self.adapters);
        self.unread_files.insert(std::mem::replace(&mut self.file_name, name.to_owned()), (old, self.adapters_version));
        let directives_text = self.unread_files.remove(name).and_then(|(document, _)| document.directives_text);
        self.write_adapters(Some(user_text), directives_text);
    }

    /// Writes a file that no server reads.
    pub(crate) fn write_unread_file(
        &mut self,
        name: &str,
        read: &ResourceVersion,
        write: &AdaptersWrite,
    ) -> WriteOutcome {
        let number = self.next_version();
        match self.unread_files.get_mut(name) {
            Some((document, version)) if read.0 == version.to_string() => {
                document.user_text = write.user_text.clone().unwrap_or_else(|| document.user_text.clone());
                document.directives_text = write.directives_text.clone().or_else(|| document.directives_text.clone());
                *version = number;
                WriteOutcome::Done(ResourceVersion(number.to_string()))
            }
            _ => WriteOutcome::Conflict,
        }
    }

    pub(crate) fn edit_spec(&mut self, edit: impl FnOnce(&mut Rollout)) {
        edit(&mut self.rollout);
        self.rollout.metadata.generation = self.rollout.metadata.generation.map(|generation| generation + 1);
        self.rollout_version = self.next_version();
        self.changed = true;
    }

    /// A person requests an intent, based on the current status.
    pub(crate) fn set_intent(&mut self, verb: IntentKind) {
        self.intents += 1;
        let status = self.status();
        let step = status.step.as_ref().map_or(0, |step| step.index);
        let verb = serde_json::to_string(&verb).unwrap();
        self.log_event(format!("a person requests {verb} of revision {}, step {step}", status.revision.number));
        let intent = format!(
            r#"{{"id":"intent-{}","verb":{verb},"revision":{},"step":{step}}}"#,
            self.intents, status.revision.number
        );
        self.rollout.metadata.annotations.insert(INTENT_ANNOTATION.to_owned(), intent);
        self.rollout_version = self.next_version();
        self.changed = true;
    }

    /// Another writer edits the rewrite.
    pub(crate) fn edit_rewrite(&mut self, edit: impl FnOnce(&mut InferenceModelRewrite)) {
        self.log_event("another writer edits the rewrite");
        let (number, own) = (self.next_version(), self.rewrite_index().unwrap_or_default());
        edit(&mut self.rewrites[own].0);
        self.rewrites[own].1 = number;
        let violation_count = self.violations.len();
        self.rewrites_changed();
        // The operator is not responsible for the weights of other writers.
        self.violations.truncate(violation_count);
        self.record_adoptable();
    }

    /// Deletes the status, as a restore without the status subresource does.
    pub(crate) fn delete_status(&mut self) {
        self.log_event("the status is lost");
        self.rollout.status = None;
        self.rollout_version = self.next_version();
        self.changed = true;
        self.record_adoptable();
    }

    fn record_adoptable(&mut self) {
        if self.rollout.status.is_none() {
            self.adoptable_weights.push(self.weights());
        }
    }

    /// Loads this adapter on every server.
    pub(crate) fn load_everywhere(&mut self, id: &AdapterId) {
        for server in &mut self.servers {
            server.loaded.insert(id.clone(), None);
        }
        self.changed = true;
    }

    /// From now on servers may lack this adapter, because the test itself causes its loss.
    pub(crate) fn allow_loss(&mut self, id: &AdapterId) {
        self.loss_allowed.push(id.clone());
    }

    /// Returns the targets and weights in the Rollout's rule.
    pub(crate) fn weights(&self) -> Vec<(String, i32)> {
        let rules = self.rewrites.iter().flat_map(|(rewrite, _)| &rewrite.spec.rules);
        let ours = rules.filter(|rule| matches_model(&self.rollout.spec.model, rule));
        let targets = ours.flat_map(|rule| &rule.targets);
        targets.map(|target| (target.model_rewrite.clone(), target.weight.unwrap_or(1))).collect()
    }

    /// A person deletes the Rollout.
    pub(crate) fn delete_rollout(&mut self) {
        self.log_event("a person deletes the Rollout");
        self.rollout.metadata.deletion_timestamp = Some(self.now);
        self.rollout_version = self.next_version();
        self.remove_if_unfinalized();
    }

    /// Removes a Rollout that is being deleted, unless it has a finalizer.
    pub(crate) fn remove_if_unfinalized(&mut self) {
        self.deleted |=
            self.rollout.metadata.deletion_timestamp.is_some() && self.rollout.metadata.finalizers.is_empty();
        self.changed = true;
    }

    /// Delivers written or deleted rewrites to the routers.
    pub(crate) fn rewrites_changed(&mut self) {
        self.with_each_rollout(Self::check_weights);
        let rules: Vec<_> = self.rewrites.iter().map(|(rewrite, _)| rewrite.clone()).collect();
        for router in &mut self.routers {
            router.pending.push((self.now + router.lag, rules.clone()));
        }
        self.changed = true;
    }

    fn check_weights(&mut self) {
        let weights = self.weights();
        self.log_event(format!("the rewrite says {weights:?}"));
        if self.rewrite_index().is_none() {
            // If the status is lost as well, sequences start over.
            self.weights_by_sequence.clear();
        }
        self.check_plan(&weights);
        self.check_finalizer(&weights);
        if self.weight_history.last() != Some(&weights) {
            self.weight_history.push(weights);
        }
    }

    /// Advances time by one tick for sidecars, vLLM, routers and clients.
    pub(crate) fn tick(&mut self) {
        self.now += TICK;
        let now = self.now;
        for router in &mut self.routers {
            while router.pending.first().is_some_and(|(at, _)| *at <= now) {
                router.rules = router.pending.remove(0).1;
            }
        }
        let behaviors = self.behaviors.clone();
        let serving = self.directives().serving;
        let mut unloaded = Vec::new();
        for server in &mut self.servers {
            let result = server.tick(now, |id| behavior_of(&behaviors, id));
            // A use that is read after the operator dropped the id is observed too late.
            let used = result.used.into_iter().filter(|id| serving.contains(id));
            self.last_uses.extend(used.map(|id| (id, now)));
            unloaded.extend(result.unloaded.into_iter().map(|id| (server.name.clone(), id)));
        }
        let reports: Vec<_> = self.servers.iter().map(SimServer::report).collect();
        self.changed |= reports != self.last_reports;
        self.last_reports = reports;
        for (server, id) in unloaded {
            self.log_event(format!("{server} unloads {id}"));
            self.check_unload(&server, &id);
        }
        self.check_routes();
        self.send_requests();
    }

    /// Every router sends one request, to its targets and to the Ready servers in turn.
    fn send_requests(&mut self) {
        let (now, models) = (self.now, self.models());
        for router in &mut self.routers {
            let targets = router.targets(&models);
            router.next_request += 1;
            let Some(target) = targets.get(router.next_request % targets.len().max(1)) else { continue };
            let mut ready: Vec<_> =
                self.servers.iter_mut().filter(|server| server.ready && !server.in_other_pool).collect();
            if ready.is_empty() {
                continue;
            }
            let server = router.next_request / 2 % ready.len();
            ready[server].handle_request(target, now, behavior_of(&self.behaviors, target));
            router.last_used.insert(target.as_str().to_owned(), now);
            self.last_uses.insert(target.clone(), now);
        }
    }

    /// Clients call an adapter directly on every server; without effect on servers that do not have it.
    pub(crate) fn use_on_all_servers(&mut self, id: &AdapterId) {
        for server in &mut self.servers {
            server.handle_request(id, self.now, behavior_of(&self.behaviors, id));
        }
    }

    /// A client of the other pool calls an adapter there.
    pub(crate) fn use_in_other_pool(&mut self, id: &AdapterId) {
        for server in self.servers.iter_mut().filter(|server| server.in_other_pool) {
            server.handle_request(id, self.now, behavior_of(&self.behaviors, id));
        }
    }

    /// Adds a server of another pool that reads the same file.
    pub(crate) fn add_other_pool_server(&mut self) {
        let mut server = SimServer::new("other-pool-server");
        server.in_other_pool = true;
        server.receive_content(self.now - server.lag, &self.config_content());
        self.servers.push(server);
    }

    /// Returns the current operator directives.
    pub(crate) fn directives(&self) -> OperatorDirectives {
        self.adapters
            .directives_text
            .as_deref()
            .map(|text| OperatorDirectives::parse(text).unwrap())
            .unwrap_or_default()
    }

    /// Returns the reports of the servers of this pool, or of the other one.
    pub(crate) fn server_reports(&self, in_other_pool: bool) -> Vec<ObservedServer> {
        self.servers.iter().filter(|server| server.in_other_pool == in_other_pool).map(SimServer::report).collect()
    }

    pub(crate) fn router_reports(&self) -> Vec<ObservedRouter> {
        let models = self.models();
        let report = |router: &SimRouter| {
            let report = if router.reachable { Ok(router.report(&models).into()) } else { Err("no answer".to_owned()) };
            ObservedRouter { name: router.name.clone(), report }
        };
        self.routers.iter().map(report).collect()
    }

    /// Returns on how many servers an adapter is loaded.
    pub(crate) fn loaded_count(&self, id: &AdapterId) -> usize {
        self.servers.iter().filter(|server| server.loaded.contains_key(id)).count()
    }
}
