//! What the user's file and the operator's key together want of each id on one server. Pure.

use crate::source::{Origin, Sources, same_source};
use rollora_api::{
    adapters::{AdapterEntry, DesiredAdapters},
    names::AdapterId,
    operator_directives::{Admission, OperatorDirectives},
};
use std::{cmp::Reverse, collections::BTreeMap};

/// Everything that is wanted of one server, by id. Ids in neither list are absent: they are left alone.
pub type Wishes = BTreeMap<AdapterId, Wish>;

/// What is said of one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// In which lists it stands.
    pub listed: Listed,
    /// Where it comes from.
    pub source: String,
    /// What that comes to here.
    pub origin: Origin,
    /// Whether it holds the readiness of the server until it is verified.
    pub required: bool,
    /// Whether the operator says that it has weight, or that a rollback could need it.
    pub serving: bool,
    /// Whether this server may load it.
    pub standing: Standing,
    /// Its place in the file: earlier entries go first.
    pub order: usize,
}

/// In which lists of the file an id stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// Under `ensureExist`.
    Exist,
    /// Under `ensureNotExist`.
    NotExist,
    /// Under both, which says nothing.
    Both,
}

/// Whether one server may load an id, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No Rollout governs it.
    Free,
    /// Admitted to every server.
    Admitted,
    /// On trial on this server.
    Pilot,
    /// Governed, and not admitted here yet.
    Waiting,
    /// It failed before.
    Rejected,
}

/// What has to become true of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Loaded and proven.
    Resident,
    /// Not loaded before it is admitted; where it is registered, it stays.
    Wait,
    /// Unwanted, yet kept because it is serving; `reload`: also over a restart of the server.
    Held {
        /// Whether it is loaded again when the server has lost it.
        reload: bool,
    },
    /// Unloaded when idle.
    Absent,
    /// Neither loaded nor unloaded.
    Leave,
}

impl Wish {
    /// What has to become true.
    pub fn goal(&self) -> Goal {
        let admitted = matches!(self.standing, Standing::Free | Standing::Admitted | Standing::Pilot);
        match (self.listed, self.standing) {
            (Listed::Both, _) => Goal::Leave,
            (Listed::Exist, Standing::Rejected) | (Listed::NotExist, _) => {
                if self.serving {
                    Goal::Held { reload: admitted }
                } else {
                    Goal::Absent
                }
            }
            (Listed::Exist, Standing::Waiting) => Goal::Wait,
            (Listed::Exist, Standing::Free | Standing::Admitted | Standing::Pilot) => Goal::Resident,
        }
    }

    /// Whether a registered `root` is what it names: by its path, or by its name where vLLM brought it itself.
    pub fn is_from(&self, root: &str) -> bool {
        same_source(root, &self.origin.root) || same_source(root, &self.source)
    }

    /// Who goes first: the pilot, then what serves, then what is required, then the order of the file.
    pub fn priority(&self) -> impl Ord + use<> {
        (self.importance(), self.order)
    }

    /// The same without the file: how much depends on it.
    pub fn importance(&self) -> impl Ord + use<> {
        Reverse((self.standing == Standing::Pilot, self.serving, self.required))
    }
}

/// What `desired` wants of the server `pod`, where `sources` says what their sources come to.
pub fn wishes(desired: &DesiredAdapters, pod: &str, sources: &Sources) -> Wishes {
    let mut wishes = Wishes::new();
    let exist = desired.file.ensure_exist.iter().map(|entry| (entry, Listed::Exist));
    let not_exist = desired.file.ensure_not_exist.iter().map(|entry| (entry, Listed::NotExist));
    for (order, (entry, listed)) in exist.chain(not_exist).enumerate() {
        wishes
            .entry(entry.id.clone())
            .and_modify(|wish| {
                if wish.listed != listed {
                    wish.listed = Listed::Both;
                }
            })
            .or_insert_with(|| Wish {
                origin: sources.origin(&entry.id, &entry.source),
                ..wish(entry, listed, desired.directives.as_ref(), pod, order)
            });
    }
    wishes
}

fn wish(entry: &AdapterEntry, listed: Listed, key: Option<&OperatorDirectives>, pod: &str, order: usize) -> Wish {
    Wish {
        listed,
        source: entry.source.clone(),
        origin: Origin::default(),
        required: entry.required,
        serving: key.is_some_and(|key| key.serving.contains(&entry.id)),
        standing: key.map_or(Standing::Free, |key| standing(key, &entry.id, pod)),
        order,
    }
}

fn standing(key: &OperatorDirectives, id: &AdapterId, pod: &str) -> Standing {
    match key.admission(id, pod) {
        Admission::Rejected => Standing::Rejected,
        Admission::Waiting => Standing::Waiting,
        Admission::Granted if key.admitted.contains(id) => Standing::Admitted,
        Admission::Granted if key.pilot_ids(pod).any(|trial| trial == id) => Standing::Pilot,
        Admission::Granted => Standing::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Goal::{Absent, Held, Leave, Resident, Wait};
    use Listed::{Both, Exist, NotExist};
    use Standing::{Admitted, Free, Pilot, Rejected, Waiting};

    #[test]
    fn what_has_to_become_true_follows_from_list_standing_and_serving() {
        const RELOAD: Goal = Held { reload: true };
        const KEEP: Goal = Held { reload: false };
        // list, then the goal while not serving and while serving, for each standing.
        let table = [
            (Exist, [(Free, Resident, Resident), (Admitted, Resident, Resident), (Pilot, Resident, Resident)]),
            (NotExist, [(Free, Absent, RELOAD), (Admitted, Absent, RELOAD), (Pilot, Absent, RELOAD)]),
            (Both, [(Free, Leave, Leave), (Admitted, Leave, Leave), (Pilot, Leave, Leave)]),
            (Exist, [(Waiting, Wait, Wait), (Rejected, Absent, KEEP), (Free, Resident, Resident)]),
            (NotExist, [(Waiting, Absent, KEEP), (Rejected, Absent, KEEP), (Free, Absent, RELOAD)]),
            (Both, [(Waiting, Leave, Leave), (Rejected, Leave, Leave), (Free, Leave, Leave)]),
        ];
        for (listed, row) in table {
            for (standing, idle, in_service) in row {
                for (serving, goal) in [(false, idle), (true, in_service)] {
                    let (source, origin) = ("/a".into(), Origin::default());
                    let wish = Wish { listed, source, origin, required: false, serving, standing, order: 0 };
                    assert_eq!(wish.goal(), goal, "{listed:?} {standing:?} serving={serving}");
                }
            }
        }
    }

    #[test]
    fn the_pilot_goes_first_then_what_serves_then_what_is_required_then_the_file() {
        let wish = |standing, serving, required, order| Wish {
            listed: Exist,
            source: "/a".into(),
            origin: Origin::default(),
            required,
            serving,
            standing,
            order,
        };
        let mut wishes = [
            wish(Free, false, false, 0),
            wish(Free, false, false, 1),
            wish(Free, false, true, 2),
            wish(Admitted, true, false, 3),
            wish(Pilot, false, false, 4),
        ];
        wishes.sort_by_key(Wish::priority);
        assert_eq!(wishes.map(|wish| wish.order), [4, 3, 2, 0, 1]);
    }
}
