//! What there is to see at one moment, and conditions over it. Pure.

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

/// Everything a person could look at, at one moment.
#[derive(Debug, Clone)]
pub struct SystemSnapshot {
    /// The Rollout's status; why it cannot be had otherwise.
    pub status: Result<RolloutStatus, String>,
    /// What each router says.
    pub routers: Vec<Result<RulesReport, String>>,
    /// Each vLLM server.
    pub servers: Vec<ServerSnapshot>,
    /// The adapters file as it stands.
    pub adapters_file: String,
    /// What is wrong with the files, in Rollora's words.
    pub file_problems: Vec<String>,
}

/// One vLLM server.
#[derive(Debug, Clone)]
pub struct ServerSnapshot {
    /// Its name.
    pub name: String,
    /// Whether requests are sent there.
    pub ready: bool,
    /// What its own `/v1/models` lists, without the base model.
    pub adapters: Result<BTreeSet<String>, String>,
    /// What its sidecar says; none where nobody could be asked.
    pub sidecar: Option<SidecarStatus>,
}

impl SystemSnapshot {
    /// The adapters file, read; an empty one where it cannot be.
    pub fn parse_adapters_file(&self) -> AdaptersFile {
        let text = AdaptersText::new(&self.adapters_file, "configmap.yaml").and_then(|text| text.parse());
        text.map(|parsed| parsed.file).unwrap_or_default()
    }
}

/// The targets of a rule with their shares; all omitted means equal ones.
pub fn target_weights(rule: &ActiveRule) -> Vec<(String, i32)> {
    let all_omitted = rule.targets.iter().all(|target| target.weight.is_none());
    let weight = |weight: Option<i32>| weight.unwrap_or(i32::from(all_omitted));
    rule.targets.iter().map(|target| (target.model_rewrite.clone(), weight(target.weight))).collect()
}

/// Something to wait for.
pub struct WaitCondition {
    description: String,
    holds: Box<dyn Fn(&SystemSnapshot) -> bool + Send + Sync>,
}

impl WaitCondition {
    /// A condition, and what it is called when it does not come true.
    pub fn new(words: impl Into<String>, holds: impl Fn(&SystemSnapshot) -> bool + Send + Sync + 'static) -> Self {
        Self { description: words.into(), holds: Box::new(holds) }
    }

    /// Whether it holds.
    pub fn holds(&self, seen: &SystemSnapshot) -> bool {
        (self.holds)(seen)
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let words = format!("{self}, and {other}");
        Self::new(words, move |seen| self.holds(seen) && other.holds(seen))
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

/// Every router splits the requests for `model` like this.
pub fn traffic_split(model: &str, targets: &[(&str, i32)]) -> WaitCondition {
    let targets: Vec<_> = targets.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    let shown: Vec<_> = targets.iter().map(|(id, weight)| format!("{id} {weight}")).collect();
    let model = model.to_owned();
    WaitCondition::new(format!("{model} is split {}", shown.join(" / ")), move |seen| {
        let rule = |report: &RulesReport| report.models.get(&model).map(target_weights);
        let right = |report: &Result<_, _>| report.as_ref().is_ok_and(|report| rule(report).as_ref() == Some(&targets));
        !seen.routers.is_empty() && seen.routers.iter().all(right)
    })
}

/// One adapter has everything.
pub fn served_by(model: &str, id: &str) -> WaitCondition {
    traffic_split(model, &[(id, 100)])
}

/// The status says this phase.
pub fn has_phase(phase: Phase) -> WaitCondition {
    WaitCondition::new(format!("the phase is {phase:?}"), move |seen| {
        seen.status.as_ref().is_ok_and(|status| status.phase == phase)
    })
}

/// The rollout of `id` has succeeded.
pub fn succeeded(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    has_phase(Phase::Succeeded).and(WaitCondition::new(format!("{id} is stable"), move |seen| {
        let stable = seen.status.as_ref().ok().and_then(|status| status.revision.stable.as_ref());
        stable.is_some_and(|stable| stable.as_str() == wanted)
    }))
}

/// The status rejects `id`.
pub fn rejected(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    WaitCondition::new(format!("{id} is rejected"), move |seen| {
        seen.status.as_ref().is_ok_and(|status| status.rejected.iter().any(|it| it.id.as_str() == wanted))
    })
}

/// Every server lists `id` itself.
pub fn loaded_everywhere(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    WaitCondition::new(format!("every server has {id}"), move |seen| {
        let has = |server: &ServerSnapshot| server.adapters.as_ref().is_ok_and(|ids| ids.contains(&wanted));
        !seen.servers.is_empty() && seen.servers.iter().all(has)
    })
}

/// No server lists `id` itself.
pub fn unloaded_everywhere(id: &str) -> WaitCondition {
    let gone = id.to_owned();
    WaitCondition::new(format!("no server has {id}"), move |seen| {
        let lacks = |server: &ServerSnapshot| server.adapters.as_ref().is_ok_and(|ids| !ids.contains(&gone));
        !seen.servers.is_empty() && seen.servers.iter().all(lacks)
    })
}

/// Requests are sent to every server.
pub fn all_servers_ready() -> WaitCondition {
    WaitCondition::new("every server is ready", |seen| {
        !seen.servers.is_empty() && seen.servers.iter().all(|server| server.ready)
    })
}

/// The adapters file has `id` under `ensureNotExist` alone.
pub fn unlisted(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    WaitCondition::new(format!("{id} stands under ensureNotExist in the adapters file"), move |seen| {
        let file = seen.parse_adapters_file();
        let has = |list: &[rollora_api::adapters::AdapterEntry]| list.iter().any(|it| it.id.as_str() == wanted);
        has(&file.ensure_not_exist) && !has(&file.ensure_exist)
    })
}

/// The status says that `id` is retired for good.
pub fn retirement_finished(id: &str) -> WaitCondition {
    let wanted = id.to_owned();
    WaitCondition::new(format!("{id} is retired"), move |seen| {
        let is_gone = |status: &RolloutStatus| {
            let entry = status.retired.iter().find(|retired| retired.id.as_str() == wanted);
            entry.is_none_or(|retired| retired.state == RetirementState::Gone)
        };
        seen.status.as_ref().is_ok_and(is_gone)
    })
}

/// Nothing is left of `id`: unlisted, and on no server.
pub fn cleaned_up(id: &str) -> WaitCondition {
    unlisted(id).and(unloaded_everywhere(id)).and(retirement_finished(id))
}

/// Rollora says in words that name all of these what is wrong with a file.
pub fn has_file_problem(words: &[&str]) -> WaitCondition {
    let wanted: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
    WaitCondition::new(format!("a problem of a file is told with the words {words:?}"), move |seen| {
        seen.file_problems.iter().any(|problem| wanted.iter().all(|word| problem.contains(word)))
    })
}

/// Nothing is wrong with the files.
pub fn no_file_problems() -> WaitCondition {
    WaitCondition::new("no file has a problem", |seen| seen.file_problems.is_empty() && seen.status.is_ok())
}
