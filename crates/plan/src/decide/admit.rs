//! Who may load the desired adapter: one pilot first, then every server; nobody where it does harm.

use super::{DecisionBuilder, DecisionContext, relisted::recently_relisted};
use crate::{desired, observed::ObservedServer, pilot, text, wait::Wait};
use rollora_api::{
    condition::reason,
    names::AdapterId,
    operator_directives::Pilot,
    rollout::{spec::ResidencyProof, status::AdmissionStatus},
    sidecar_status::NO_SIDECAR,
};

/// Trials that were put aside and are remembered.
const MAX_TRIED: usize = 10;

impl DecisionContext<'_> {
    /// Lets the desired adapter be tried on one server, and then be loaded on all. Says what keeps it from residency.
    pub(super) fn admit(&self, draft: &mut DecisionBuilder) -> Option<Wait> {
        let desired = draft.status.revision.desired.clone()?;
        // A rejected id keeps its pilot: when it is tried again, then where it has done its harm already.
        if draft.with_traffic(|traffic| traffic.rejection().is_some()) {
            return None;
        }
        let Ok(file) = self.adapters_file() else { return self.file_wait() };
        if let Some(why) = desired::not_listed_message(&desired, file) {
            return Some(Wait::on_change(reason::NOT_LISTED, why));
        }
        if let Some(wait) = recently_relisted(&draft.status, &desired) {
            return Some(wait);
        }
        if self.spec.residency == ResidencyProof::Registered && self.servers().is_some_and(has_no_sidecar) {
            // Whoever loads adapters here does not listen to us: there is nobody to try it first.
            let admitted = &mut draft.status.admission.admitted;
            if !admitted.contains(&desired) {
                admitted.push(desired.clone());
            }
        }
        if draft.status.admission.admitted.contains(&desired) {
            end_trial(&mut draft.status.admission, &desired);
            let unseen = || {
                let error = self.observed.servers.as_ref().err()?;
                Some(Wait::while_unobservable("the servers of the pool cannot be listed", error, self.now))
            };
            return self.reject_if_fatal(draft, &desired).or_else(|| self.directives_wait(&desired)).or_else(unseen);
        }
        self.try_on_pilot(draft, desired)
    }

    fn try_on_pilot(&self, draft: &mut DecisionBuilder, desired: AdapterId) -> Option<Wait> {
        let servers = match &self.observed.servers {
            Ok(servers) => servers.as_slice(),
            Err(error) => {
                return Some(Wait::while_unobservable("the servers of the pool cannot be listed", error, self.now));
            }
        };
        if self.adapters().is_some_and(|adapters| adapters.directives.admitted.contains(&desired)) {
            // Or a key without it, which somebody was about to write, would be written when it serves again.
            let words =
                format!("{desired} was admitted once: that is taken back, then it is tried on one server first");
            return Some(Wait::soon(reason::PILOT_PENDING, words));
        }
        let status = &mut draft.status;
        let serving: Vec<AdapterId> = status.weights.desired.iter().map(|target| target.id.clone()).collect();
        let waits = |words: String| Some(Wait::soon(reason::PILOT_PENDING, words));
        let pilot = self.find_trial(&status.admission, &desired);
        if let Some(pilot) = &pilot {
            begin_trial(&mut status.admission, pilot.clone());
        }
        match pilot::evaluate(&desired, pilot.as_ref(), &serving, servers, self.content_hash()) {
            pilot::PilotDecision::Admit(server) => {
                status.admission.admitted.push(desired.clone());
                end_trial(&mut status.admission, &desired);
                draft.record_event(
                    false,
                    reason::PROGRESSING,
                    format!("{desired} is proven on {server}: every server may load it"),
                );
                self.directives_wait(&desired)
            }
            pilot::PilotDecision::Choose(server) => {
                let message = format!("{desired} is tried on {server} first");
                begin_trial(&mut status.admission, Pilot { id: desired, pod: server });
                draft.record_event(false, reason::PILOT_PENDING, message.clone());
                waits(message)
            }
            pilot::PilotDecision::Trying(words) => waits(format!("{desired} is tried on one server first: {words}")),
            pilot::PilotDecision::NoReadyServer => {
                Some(Wait::soon(reason::NO_READY_PODS, text::no_ready_servers(&self.spec.pool_ref)))
            }
            pilot::PilotDecision::Reject(why) => self.fail(draft, &why),
        }
    }

    /// Where an id is on trial, or was before another took its place.
    fn find_trial(&self, admission: &AdmissionStatus, id: &AdapterId) -> Option<Pilot> {
        // A status that was lost knows of no pilot; the key does.
        let told = self.adapters().into_iter().flat_map(|adapters| &adapters.directives.pilots);
        admission.pilot.iter().chain(&admission.past_pilots).chain(told).find(|pilot| pilot.id == *id).cloned()
    }

    /// An adapter that was proven on its pilot may still end another server: no third one tries it.
    fn reject_if_fatal(&self, draft: &mut DecisionBuilder, desired: &AdapterId) -> Option<Wait> {
        if !draft.with_traffic(|traffic| traffic.is_unfinished()) {
            return None;
        }
        let why = pilot::quarantine_reason(desired, self.servers()?, self.content_hash())?;
        self.fail(draft, &why)
    }

    fn fail(&self, draft: &mut DecisionBuilder, why: &str) -> Option<Wait> {
        draft.with_traffic(|traffic| traffic.fail(why, reason::ADAPTER_REJECTED, self.servers(), self.now))
    }

    /// Before an id gets weight, the sidecars have been told never to unload it.
    fn directives_wait(&self, id: &AdapterId) -> Option<Wait> {
        let key = self.adapters().map(|adapters| &adapters.directives);
        let told = key.is_some_and(|key| key.serving.contains(id) && key.admitted.contains(id));
        (!told).then(|| Wait::soon(reason::NOT_RESIDENT, format!("{id} is admitted to every server")))
    }
}

fn begin_trial(admission: &mut AdmissionStatus, pilot: Pilot) {
    end_trial(admission, &pilot.id);
    admission.pilot = Some(pilot);
}

/// The trial of this id is over; one of another is only put aside.
fn end_trial(admission: &mut AdmissionStatus, id: &AdapterId) {
    if let Some(pilot) = admission.pilot.take() {
        admission.past_pilots.retain(|tried| tried.id != pilot.id);
        admission.past_pilots.insert(0, pilot);
    }
    admission.past_pilots.retain(|tried| tried.id != *id);
    admission.past_pilots.truncate(MAX_TRIED);
}

/// Whether there are Ready servers, and none of them has a sidecar.
fn has_no_sidecar(servers: &[ObservedServer]) -> bool {
    let alone =
        |server: &ObservedServer| server.status.as_ref().is_ok_and(|status| status.readiness.reason == NO_SIDECAR);
    let mut ready = servers.iter().filter(|server| server.ready).peekable();
    ready.peek().is_some() && ready.all(alone)
}
