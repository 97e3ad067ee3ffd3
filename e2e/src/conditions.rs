//! The observable state at one moment, and conditions over it. Pure.

use rollora_api::{
    adapters::{AdaptersFile, AdaptersText},
    rollout::{
        RolloutStatus,
        status::{Phase, RetirementState},
    },
    router_report::{ActiveRule, RulesReport},
    sidecar_status::SidecarStatus,
};
use std::{collections::BTreeSet, fmt};

/// Everything a person could observe, at one moment.
#[derive(Debug, Clone)]
pub struct SystemSnapshot {
    /// The Rollout's status, or why it could not be read.
    pub status: Result<RolloutStatus, String>,
    /// The `/rules` report of each router, or why it could not be read.
    pub routers: Vec<Result<RulesReport, String>>,
    /// One entry per vLLM server, in the environment's order.
    pub servers: Vec<ServerSnapshot>,
    /// Current text of the adapters file.
    pub adapters_file: String,
    /// Problems of the two files, as Rollora reports them; always empty on a cluster.
    pub file_problems: Vec<String>,
}

/// One vLLM server at the moment of a snapshot.
#[derive(Debug, Clone)]
pub struct ServerSnapshot {
    /// Host and port of the server, or the name of its pod.
    pub name: String,
    /// Whether the gateway sends requests to it.
    pub ready: bool,
    /// The ids in its own `/v1/models`, without the base model.
    pub adapters: Result<BTreeSet<String>, String>,
    /// The status of its sidecar; `None` if the sidecar did not answer.
    pub sidecar: Option<SidecarStatus>,
}

impl SystemSnapshot {
    /// Returns the parsed adapters file; an empty one if it does not parse.
    pub fn parse_adapters_file(&self) -> AdaptersFile {
        let text = AdaptersText::new(&self.adapters_file, "configmap.yaml").and_then(|text| text.parse());
        text.map(|parsed| parsed.file).unwrap_or_default()
    }
}

/// Returns the targets of a rule with their weights; if every weight is omitted, all are 1.
pub fn target_weights(rule: &ActiveRule) -> Vec<(String, i32)> {
    let all_omitted = rule.targets.iter().all(|target| target.weight.is_none());
    let weight = |weight: Option<i32>| weight.unwrap_or(i32::from(all_omitted));
    rule.targets.iter().map(|target| (target.model_rewrite.clone(), weight(target.weight))).collect()
}

/// A named predicate over a snapshot that a scenario waits for.
pub struct WaitCondition {
    description: String,
    holds: Box<dyn Fn(&SystemSnapshot) -> bool + Send + Sync>,
}

impl WaitCondition {
    /// Creates a condition; `description` is how a failure names it.
    pub fn new(words: impl Into<String>, holds: impl Fn(&SystemSnapshot) -> bool + Send + Sync + 'static) -> Self {
        Self { description: words.into(), holds: Box::new(holds) }
    }

    /// Returns whether the condition holds in this snapshot.
    pub fn holds(&self, snapshot: &SystemSnapshot) -> bool {
        (self.holds)(snapshot)
    }

    /// Combines two conditions: both must hold in the same snapshot.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let words = format!("{self}, and {other}");
        Self::new(words, move |snapshot| self.holds(snapshot) && other.holds(snapshot))
    }
}

impl fmt::Display for WaitCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

impl fmt::Debug for WaitCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({:?})", self.description)
    }
}

/// Holds if every router splits the requests for `model` into exactly these targets, in this order.
pub fn traffic_split(model: &str, targets: &[(&str, i32)]) -> WaitCondition {
    let targets: Vec<_> = targets.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    let shown: Vec<_> = targets.iter().map(|(id, weight)| format!("{id} {weight}")).collect();
    let model = model.to_owned();
    WaitCondition::new(format!("{model} is split {}", shown.join(" / ")), move |snapshot| {
        let rule = |report: &RulesReport| report.models.get(&model).map(target_weights);
        let right = |report: &Result<_, _>| report.as_ref().is_ok_and(|report| rule(report).as_ref() == Some(&targets));
        !snapshot.routers.is_empty() && snapshot.routers.iter().all(right)
    })
}

/// Holds if every router sends all requests for `model` to `id`.
pub fn served_by(model: &str, id: &str) -> WaitCondition {
    traffic_split(model, &[(id, 100)])
}

/// Holds if the status has this phase.
pub fn has_phase(phase: Phase) -> WaitCondition {
    WaitCondition::new(format!("the phase is {phase:?}"), move |snapshot| {
        snapshot.status.as_ref().is_ok_and(|status| status.phase == phase)
    })
}

/// Holds if the rollout of `id` succeeded: `id` is stable.
pub fn succeeded(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    has_phase(Phase::Succeeded).and(WaitCondition::new(format!("{id} is stable"), move |snapshot| {
        let stable = snapshot.status.as_ref().ok().and_then(|status| status.revision.stable.as_ref());
        stable.is_some_and(|stable| stable.as_str() == wanted)
    }))
}

/// Holds if the status lists `id` as rejected.
pub fn rejected(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    WaitCondition::new(format!("{id} is rejected"), move |snapshot| {
        snapshot.status.as_ref().is_ok_and(|status| status.rejected.iter().any(|it| it.id.as_str() == wanted))
    })
}

/// Holds if the `/v1/models` of every server lists `id`.
pub fn loaded_everywhere(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    WaitCondition::new(format!("every server has {id}"), move |snapshot| {
        let has = |server: &ServerSnapshot| server.adapters.as_ref().is_ok_and(|ids| ids.contains(&wanted));
        !snapshot.servers.is_empty() && snapshot.servers.iter().all(has)
    })
}

/// Holds if the `/v1/models` of no server lists `id`.
pub fn unloaded_everywhere(id: &str) -> WaitCondition {
    let id = id.to_owned();
    WaitCondition::new(format!("no server has {id}"), move |snapshot| {
        let lacks = |server: &ServerSnapshot| server.adapters.as_ref().is_ok_and(|ids| !ids.contains(&id));
        !snapshot.servers.is_empty() && snapshot.servers.iter().all(lacks)
    })
}

/// Holds if the gateway sends requests to every server.
pub fn all_servers_ready() -> WaitCondition {
    WaitCondition::new("every server is ready", |snapshot| {
        !snapshot.servers.is_empty() && snapshot.servers.iter().all(|server| server.ready)
    })
}

/// Holds if the adapters file has `id` under `ensureNotExist` alone.
pub fn unlisted(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    WaitCondition::new(format!("the adapters file has {id} under ensureNotExist alone"), move |snapshot| {
        let file = snapshot.parse_adapters_file();
        let has = |list: &[rollora_api::adapters::AdapterEntry]| list.iter().any(|it| it.id.as_str() == wanted);
        has(&file.ensure_not_exist) && !has(&file.ensure_exist)
    })
}

/// Holds if `id` is retired and unloaded, or no longer in the list of retired ids.
pub fn retirement_finished(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    WaitCondition::new(format!("{id} is retired"), move |snapshot| {
        let is_gone = |status: &RolloutStatus| {
            let entry = status.retired.iter().find(|retired| retired.id.as_str() == wanted);
            entry.is_none_or(|retired| retired.state == RetirementState::Gone)
        };
        snapshot.status.as_ref().is_ok_and(is_gone)
    })
}

/// Holds if nothing is left of `id`: it is unlisted, on no server, and its retirement has finished.
pub fn cleaned_up(id: &str) -> WaitCondition {
    unlisted(id).and(unloaded_everywhere(id)).and(retirement_finished(id))
}

/// Holds if one reported file problem contains all of these words.
pub fn has_file_problem(words: &[&str]) -> WaitCondition {
    let wanted: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
    WaitCondition::new(format!("a file problem contains the words {words:?}"), move |snapshot| {
        snapshot.file_problems.iter().any(|problem| wanted.iter().all(|word| problem.contains(word)))
    })
}

/// Holds if no file has a problem.
pub fn no_file_problems() -> WaitCondition {
    WaitCondition::new("no file has a problem", |snapshot| snapshot.file_problems.is_empty() && snapshot.status.is_ok())
}
