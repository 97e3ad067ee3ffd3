//! Who may load the desired adapter: one pilot first, then every server; nobody where it does harm.

use super::{Case, Draft};
use crate::{desired, pilot, wait::Wait};
use rollora_api::{condition::reason, names::AdapterId, operator_key::Pilot};

impl Case<'_> {
    /// Lets the desired adapter be tried on one server, and then be loaded on all. Says what keeps it from residency.
    pub(super) fn admit(&self, draft: &mut Draft) -> Option<Wait> {
        let desired = draft.status.revision.desired.clone()?;
        // A rejected id keeps its pilot: when it is tried again, then where it has done its harm already.
        if draft.traffic(|traffic| traffic.rejection().is_some()) {
            return None;
        }
        let file = match self.file() {
            Ok(file) => file,
            Err(why) => return Some(Wait::soon(reason::UNAVAILABLE, why)),
        };
        if let Some(why) = desired::not_listed(&desired, file) {
            return Some(Wait::on_change(reason::NOT_LISTED, why));
        }
        if draft.status.admission.admitted.contains(&desired) {
            draft.status.admission.pilot = None;
            return self.reject_if_deadly(draft, &desired).or_else(|| self.unwritten(&desired));
        }
        self.try_on_pilot(draft, desired)
    }

    fn try_on_pilot(&self, draft: &mut Draft, desired: AdapterId) -> Option<Wait> {
        let Some(servers) = self.servers() else {
            return Some(Wait::soon(reason::UNAVAILABLE, "the servers of the pool cannot be listed"));
        };
        let status = &mut draft.status;
        let serving: Vec<AdapterId> = status.weights.desired.iter().map(|target| target.id.clone()).collect();
        let waits = |words: String| Some(Wait::soon(reason::PILOT_PENDING, words));
        match pilot::judge(&desired, status.admission.pilot.as_ref(), &serving, servers, self.content()) {
            pilot::Verdict::Admit(server) => {
                status.admission.admitted.push(desired.clone());
                status.admission.pilot = None;
                draft.say(
                    false,
                    reason::PROGRESSING,
                    format!("{desired} is proven on {server}: every server may load it"),
                );
                self.unwritten(&desired)
            }
            pilot::Verdict::Choose(server) => {
                let message = format!("{desired} is tried on {server} first");
                status.admission.pilot = Some(Pilot { id: desired, pod: server });
                draft.say(false, reason::PILOT_PENDING, message.clone());
                waits(message)
            }
            pilot::Verdict::Trying(words) => waits(format!("{desired} is tried on one server first: {words}")),
            pilot::Verdict::Nobody(words) => Some(Wait::soon(reason::NO_READY_PODS, words)),
            pilot::Verdict::Reject(why) => self.fail(draft, &why),
        }
    }

    /// An adapter that was proven on its pilot may still end another server: no third one tries it.
    fn reject_if_deadly(&self, draft: &mut Draft, desired: &AdapterId) -> Option<Wait> {
        if !draft.traffic(|traffic| traffic.is_unfinished()) {
            return None;
        }
        let why = pilot::death(desired, self.servers()?, self.content())?;
        self.fail(draft, &why)
    }

    fn fail(&self, draft: &mut Draft, why: &str) -> Option<Wait> {
        draft.traffic(|traffic| traffic.fail(why, reason::ADAPTER_REJECTED, self.servers(), self.now))
    }

    /// Before an id gets weight, the sidecars have been told never to unload it.
    fn unwritten(&self, id: &AdapterId) -> Option<Wait> {
        let key = self.adapters().map(|adapters| &adapters.key);
        let told = key.is_some_and(|key| key.serving.contains(id) && key.admitted.contains(id));
        (!told).then(|| Wait::soon(reason::NOT_RESIDENT, format!("{id} is admitted to every server")))
    }
}
