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
pub struct Seen {
    /// The Rollout's status; why it cannot be had otherwise.
    pub status: Result<RolloutStatus, String>,
    /// What each router says.
    pub routers: Vec<Result<RulesReport, String>>,
    /// Each vLLM server.
    pub servers: Vec<ServerSeen>,
    /// The adapters file as it stands.
    pub adapters_file: String,
    /// What is wrong with the files, in Rollora's words.
    pub file_problems: Vec<String>,
}

/// One vLLM server.
#[derive(Debug, Clone)]
pub struct ServerSeen {
    /// Its name.
    pub name: String,
    /// Whether requests are sent there.
    pub ready: bool,
    /// What its own `/v1/models` lists, without the base model.
    pub adapters: Result<BTreeSet<String>, String>,
    /// What its sidecar says; none where nobody could be asked.
    pub sidecar: Option<SidecarStatus>,
}

impl Seen {
    /// The adapters file, read; an empty one where it cannot be.
    pub fn listed(&self) -> AdaptersFile {
        let text = AdaptersText::new(&self.adapters_file, "configmap.yaml").and_then(|text| text.parse());
        text.map(|parsed| parsed.file).unwrap_or_default()
    }
}

/// The targets of a rule with their shares; all omitted means equal ones.
pub fn weights(rule: &ActiveRule) -> Vec<(String, i32)> {
    let all_omitted = rule.targets.iter().all(|target| target.weight.is_none());
    let weight = |weight: Option<i32>| weight.unwrap_or(i32::from(all_omitted));
    rule.targets.iter().map(|target| (target.model_rewrite.clone(), weight(target.weight))).collect()
}

/// Something to wait for.
pub struct Condition {
    words: String,
    holds: Box<dyn Fn(&Seen) -> bool + Send + Sync>,
}

impl Condition {
    /// A condition, and what it is called when it does not come true.
    pub fn new(words: impl Into<String>, holds: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Self {
        Self { words: words.into(), holds: Box::new(holds) }
    }

    /// Whether it holds.
    pub fn holds(&self, seen: &Seen) -> bool {
        (self.holds)(seen)
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let words = format!("{self}, and {other}");
        Self::new(words, move |seen| self.holds(seen) && other.holds(seen))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({:?})", self.words)
    }
}

/// Every router splits the requests for `model` like this.
pub fn split(model: &str, targets: &[(&str, i32)]) -> Condition {
    let targets: Vec<_> = targets.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    let shown: Vec<_> = targets.iter().map(|(id, weight)| format!("{id} {weight}")).collect();
    let model = model.to_owned();
    Condition::new(format!("{model} is split {}", shown.join(" / ")), move |seen| {
        let rule = |report: &RulesReport| report.models.get(&model).map(weights);
        let right = |report: &Result<_, _>| report.as_ref().is_ok_and(|report| rule(report).as_ref() == Some(&targets));
        !seen.routers.is_empty() && seen.routers.iter().all(right)
    })
}

/// One adapter has everything.
pub fn served_by(model: &str, id: &str) -> Condition {
    split(model, &[(id, 100)])
}

/// The status says this phase.
pub fn phase(phase: Phase) -> Condition {
    Condition::new(format!("the phase is {phase:?}"), move |seen| {
        seen.status.as_ref().is_ok_and(|status| status.phase == phase)
    })
}

/// The rollout of `id` has succeeded.
pub fn succeeded(id: &str) -> Condition {
    let wanted = id.to_owned();
    phase(Phase::Succeeded).and(Condition::new(format!("{id} is stable"), move |seen| {
        let stable = seen.status.as_ref().ok().and_then(|status| status.revision.stable.as_ref());
        stable.is_some_and(|stable| stable.as_str() == wanted)
    }))
}

/// The status rejects `id`.
pub fn rejected(id: &str) -> Condition {
    let wanted = id.to_owned();
    Condition::new(format!("{id} is rejected"), move |seen| {
        seen.status.as_ref().is_ok_and(|status| status.rejected.iter().any(|it| it.id.as_str() == wanted))
    })
}

/// Every server lists `id` itself.
pub fn loaded_everywhere(id: &str) -> Condition {
    let wanted = id.to_owned();
    Condition::new(format!("every server has {id}"), move |seen| {
        let has = |server: &ServerSeen| server.adapters.as_ref().is_ok_and(|ids| ids.contains(&wanted));
        !seen.servers.is_empty() && seen.servers.iter().all(has)
    })
}

/// No server lists `id` itself.
pub fn gone_everywhere(id: &str) -> Condition {
    let gone = id.to_owned();
    Condition::new(format!("no server has {id}"), move |seen| {
        let lacks = |server: &ServerSeen| server.adapters.as_ref().is_ok_and(|ids| !ids.contains(&gone));
        !seen.servers.is_empty() && seen.servers.iter().all(lacks)
    })
}

/// Requests are sent to every server.
pub fn every_server_is_ready() -> Condition {
    Condition::new("every server is ready", |seen| {
        !seen.servers.is_empty() && seen.servers.iter().all(|server| server.ready)
    })
}

/// The adapters file has `id` under `ensureNotExist` alone.
pub fn unlisted(id: &str) -> Condition {
    let wanted = id.to_owned();
    Condition::new(format!("{id} stands under ensureNotExist in the adapters file"), move |seen| {
        let file = seen.listed();
        let has = |list: &[rollora_api::adapters::AdapterEntry]| list.iter().any(|it| it.id.as_str() == wanted);
        has(&file.ensure_not_exist) && !has(&file.ensure_exist)
    })
}

/// The status says that `id` is retired for good.
pub fn retired(id: &str) -> Condition {
    let wanted = id.to_owned();
    Condition::new(format!("{id} is retired"), move |seen| {
        let is_gone = |status: &RolloutStatus| {
            let entry = status.retired.iter().find(|retired| retired.id.as_str() == wanted);
            entry.is_none_or(|retired| retired.state == RetirementState::Gone)
        };
        seen.status.as_ref().is_ok_and(is_gone)
    })
}

/// Nothing is left of `id`: unlisted, and on no server.
pub fn cleaned_up(id: &str) -> Condition {
    unlisted(id).and(gone_everywhere(id)).and(retired(id))
}

/// Rollora says in words that name all of these what is wrong with a file.
pub fn complains(words: &[&str]) -> Condition {
    let wanted: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
    Condition::new(format!("a problem of a file is told with the words {words:?}"), move |seen| {
        seen.file_problems.iter().any(|problem| wanted.iter().all(|word| problem.contains(word)))
    })
}

/// Nothing is wrong with the files.
pub fn no_complaint() -> Condition {
    Condition::new("no file has a problem", |seen| seen.file_problems.is_empty() && seen.status.is_ok())
}
