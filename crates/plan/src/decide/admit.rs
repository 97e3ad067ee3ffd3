//! Admission of the desired adapter: the pilot loads it first, then every server; a rejected adapter is loaded nowhere.

use super::{DecisionBuilder, DecisionContext, relisted::recently_relisted};
use crate::{desired, observed::ObservedServer, pilot, text, wait::Wait};
use rollora_api::{
    condition::reason,
    names::AdapterId,
    operator_directives::Pilot,
    rollout::{spec::ResidencyProof, status::AdmissionStatus},
    sidecar_status::NO_SIDECAR,
};

/// Past pilots that the status keeps.
const MAX_TRIED: usize = 10;

impl DecisionContext<'_> {
    /// Admits the desired adapter to one server, and after its proof to all. Returns what keeps it from being resident.
    pub(super) fn admit(&self, builder: &mut DecisionBuilder) -> Option<Wait> {
        let desired = builder.status.revision.desired.clone()?;
        // A rejected id keeps its pilot: if it is tried again, it must be on the server that it has already harmed.
        if builder.with_traffic(|traffic| traffic.rejection().is_some()) {
            return None;
        }
        let Ok(file) = self.adapters_file() else { return self.file_wait() };
        if let Some(why) = desired::not_listed_message(&desired, file) {
            return Some(Wait::on_change(reason::NOT_LISTED, why));
        }
        if let Some(wait) = recently_relisted(&builder.status, &desired) {
            return Some(wait);
        }
        if self.spec.residency == ResidencyProof::Registered && self.servers().is_some_and(has_no_sidecar) {
            // Adapters are loaded by another tool, which does not read the directives, so there is no pilot.
            let admitted = &mut builder.status.admission.admitted;
            if !admitted.contains(&desired) {
                admitted.push(desired.clone());
            }
        }
        if builder.status.admission.admitted.contains(&desired) {
            end_trial(&mut builder.status.admission, &desired);
            let unobserved = || {
                let error = self.observed.servers.as_ref().err()?;
                Some(Wait::while_unobservable("the servers of the pool cannot be listed", error, self.now))
            };
            return self
                .reject_if_fatal(builder, &desired)
                .or_else(|| self.directives_wait(&desired))
                .or_else(unobserved);
        }
        self.try_on_pilot(builder, desired)
    }

    fn try_on_pilot(&self, builder: &mut DecisionBuilder, desired: AdapterId) -> Option<Wait> {
        let servers = match &self.observed.servers {
            Ok(servers) => servers.as_slice(),
            Err(error) => {
                return Some(Wait::while_unobservable("the servers of the pool cannot be listed", error, self.now));
            }
        };
        if self.adapters().is_some_and(|adapters| adapters.directives.admitted.contains(&desired)) {
            // The old admission must leave the directives first. Otherwise a delayed write without it could land when
            // the adapter serves again.
            let message =
                format!("the old admission of {desired} is withdrawn first, then one server tries the adapter");
            return Some(Wait::soon(reason::PILOT_PENDING, message));
        }
        let status = &mut builder.status;
        let serving: Vec<AdapterId> = status.weights.desired.iter().map(|target| target.id.clone()).collect();
        let waits = |message: String| Some(Wait::soon(reason::PILOT_PENDING, message));
        let pilot = self.find_trial(&status.admission, &desired);
        if let Some(pilot) = &pilot {
            begin_trial(&mut status.admission, pilot.clone());
        }
        match pilot::evaluate(&desired, pilot.as_ref(), &serving, servers, self.content_hash()) {
            pilot::PilotDecision::Admit(server) => {
                status.admission.admitted.push(desired.clone());
                end_trial(&mut status.admission, &desired);
                builder.record_event(
                    false,
                    reason::PROGRESSING,
                    format!("{desired} is verified on {server}: every server may load it"),
                );
                self.directives_wait(&desired)
            }
            pilot::PilotDecision::Choose(server) => {
                let message = format!("{desired} is tried on the pilot {server} first");
                begin_trial(&mut status.admission, Pilot { id: desired, pod: server });
                builder.record_event(false, reason::PILOT_PENDING, message.clone());
                waits(message)
            }
            pilot::PilotDecision::Trying(progress) => {
                waits(format!("{desired} is tried on one server first: {progress}"))
            }
            pilot::PilotDecision::NoReadyServer => {
                Some(Wait::soon(reason::NO_READY_PODS, text::no_ready_servers(&self.spec.pool_ref)))
            }
            pilot::PilotDecision::Reject(why) => self.fail(builder, &why),
        }
    }

    /// Returns the pilot of an id, current or past.
    fn find_trial(&self, admission: &AdmissionStatus, id: &AdapterId) -> Option<Pilot> {
        // If the status was lost, the directives still name the pilot.
        let recorded = self.adapters().into_iter().flat_map(|adapters| &adapters.directives.pilots);
        admission.pilot.iter().chain(&admission.past_pilots).chain(recorded).find(|pilot| pilot.id == *id).cloned()
    }

    /// Rejects an adapter that was verified on its pilot and then crashed another server: no third server may load it.
    fn reject_if_fatal(&self, builder: &mut DecisionBuilder, desired: &AdapterId) -> Option<Wait> {
        if !builder.with_traffic(|traffic| traffic.is_unfinished()) {
            return None;
        }
        let why = pilot::quarantine_reason(desired, self.servers()?, self.content_hash())?;
        self.fail(builder, &why)
    }

    fn fail(&self, builder: &mut DecisionBuilder, why: &str) -> Option<Wait> {
        builder.with_traffic(|traffic| traffic.fail(why, reason::ADAPTER_REJECTED, self.servers(), self.now))
    }

    /// Waits until the directives contain the id: before it gets weight, every sidecar must know not to unload it.
    fn directives_wait(&self, id: &AdapterId) -> Option<Wait> {
        let directives = self.adapters().map(|adapters| &adapters.directives);
        let written =
            directives.is_some_and(|directives| directives.serving.contains(id) && directives.admitted.contains(id));
        (!written).then(|| Wait::soon(reason::NOT_RESIDENT, format!("{id} is being admitted to every server")))
    }
}

fn begin_trial(admission: &mut AdmissionStatus, pilot: Pilot) {
    end_trial(admission, &pilot.id);
    admission.pilot = Some(pilot);
}

/// Ends the trial of `id`. The trial of another id is kept among the past pilots.
fn end_trial(admission: &mut AdmissionStatus, id: &AdapterId) {
    if let Some(pilot) = admission.pilot.take() {
        admission.past_pilots.retain(|tried| tried.id != pilot.id);
        admission.past_pilots.insert(0, pilot);
    }
    admission.past_pilots.retain(|tried| tried.id != *id);
    admission.past_pilots.truncate(MAX_TRIED);
}

/// Returns whether there are Ready servers and none of them has a sidecar.
fn has_no_sidecar(servers: &[ObservedServer]) -> bool {
    let without_sidecar =
        |server: &ObservedServer| server.status.as_ref().is_ok_and(|status| status.readiness.reason == NO_SIDECAR);
    let mut ready = servers.iter().filter(|server| server.ready).peekable();
    ready.peek().is_some() && ready.all(without_sidecar)
}
