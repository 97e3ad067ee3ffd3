//! What the user's file and the operator's key together want of each id on one server. Pure.

use crate::source::{AdapterSourcePolicy, ResolvedSource, same_source};
use rollora_api::{
    adapters::{AdapterEntry, DesiredAdapters},
    names::AdapterId,
    operator_directives::{Admission, OperatorDirectives},
};
use std::{cmp::Reverse, collections::BTreeMap};

/// Everything that is wanted of one server, by id. Ids in neither list are absent: they are left alone.
pub type AdapterSpecs = BTreeMap<AdapterId, AdapterSpec>;

/// What is said of one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSpec {
    /// In which lists it stands.
    pub membership: ListMembership,
    /// Where it comes from.
    pub source: String,
    /// What that comes to here.
    pub resolved: ResolvedSource,
    /// Whether it holds the readiness of the server until it is verified.
    pub required: bool,
    /// Whether the operator says that it has weight, or that a rollback could need it.
    pub serving: bool,
    /// Whether this server may load it.
    pub permission: LoadPermission,
    /// Its place in the file: earlier entries go first.
    pub file_order: usize,
}

/// In which lists of the file an id stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListMembership {
    /// Under `ensureExist`.
    EnsureExist,
    /// Under `ensureNotExist`.
    EnsureNotExist,
    /// Under both, which says nothing.
    Both,
}

/// Whether one server may load an id, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadPermission {
    /// No Rollout governs it.
    Ungoverned,
    /// Admitted to every server.
    Admitted,
    /// On trial on this server.
    Pilot,
    /// Governed, and not admitted here yet.
    NotAdmitted,
    /// It failed before.
    Rejected,
}

/// What has to become true of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterGoal {
    /// Loaded and proven.
    Resident,
    /// Not loaded before it is admitted; where it is registered, it stays.
    AwaitAdmission,
    /// Unwanted, yet kept because it is serving; `reload`: also over a restart of the server.
    UnloadHeld {
        /// Whether it is loaded again when the server has lost it.
        reload: bool,
    },
    /// Unloaded when idle.
    Absent,
    /// Neither loaded nor unloaded.
    Ignore,
}

impl AdapterSpec {
    /// What has to become true.
    pub fn goal(&self) -> AdapterGoal {
        let admitted =
            matches!(self.permission, LoadPermission::Ungoverned | LoadPermission::Admitted | LoadPermission::Pilot);
        match (self.membership, self.permission) {
            (ListMembership::Both, _) => AdapterGoal::Ignore,
            (ListMembership::EnsureExist, LoadPermission::Rejected) | (ListMembership::EnsureNotExist, _) => {
                if self.serving { AdapterGoal::UnloadHeld { reload: admitted } } else { AdapterGoal::Absent }
            }
            (ListMembership::EnsureExist, LoadPermission::NotAdmitted) => AdapterGoal::AwaitAdmission,
            (
                ListMembership::EnsureExist,
                LoadPermission::Ungoverned | LoadPermission::Admitted | LoadPermission::Pilot,
            ) => AdapterGoal::Resident,
        }
    }

    /// Whether a registered `root` is what it names: by its path, or by its name where vLLM brought it itself.
    pub fn matches_root(&self, root: &str) -> bool {
        same_source(root, &self.resolved.root) || same_source(root, &self.source)
    }

    /// Who goes first: the pilot, then what serves, then what is required, then the order of the file.
    pub fn priority(&self) -> impl Ord + use<> {
        (self.priority_class(), self.file_order)
    }

    /// The same without the file: how much depends on it.
    pub fn priority_class(&self) -> impl Ord + use<> {
        Reverse((self.permission == LoadPermission::Pilot, self.serving, self.required))
    }
}

/// What `desired` wants of the server `pod`, where `sources` says what their sources come to.
pub fn adapter_specs(desired: &DesiredAdapters, pod: &str, sources: &AdapterSourcePolicy) -> AdapterSpecs {
    let mut wishes = AdapterSpecs::new();
    let exist = desired.file.ensure_exist.iter().map(|entry| (entry, ListMembership::EnsureExist));
    let not_exist = desired.file.ensure_not_exist.iter().map(|entry| (entry, ListMembership::EnsureNotExist));
    for (order, (entry, listed)) in exist.chain(not_exist).enumerate() {
        wishes
            .entry(entry.id.clone())
            .and_modify(|wish| {
                if wish.membership != listed {
                    wish.membership = ListMembership::Both;
                }
            })
            .or_insert_with(|| AdapterSpec {
                resolved: sources.resolve(&entry.id, &entry.source),
                ..adapter_spec(entry, listed, desired.directives.as_ref(), pod, order)
            });
    }
    wishes
}

fn adapter_spec(
    entry: &AdapterEntry,
    listed: ListMembership,
    key: Option<&OperatorDirectives>,
    pod: &str,
    order: usize,
) -> AdapterSpec {
    AdapterSpec {
        membership: listed,
        source: entry.source.clone(),
        resolved: ResolvedSource::default(),
        required: entry.required,
        serving: key.is_some_and(|key| key.serving.contains(&entry.id)),
        permission: key.map_or(LoadPermission::Ungoverned, |key| load_permission(key, &entry.id, pod)),
        file_order: order,
    }
}

fn load_permission(key: &OperatorDirectives, id: &AdapterId, pod: &str) -> LoadPermission {
    match key.admission(id, pod) {
        Admission::Rejected => LoadPermission::Rejected,
        Admission::Waiting => LoadPermission::NotAdmitted,
        Admission::Granted if key.admitted.contains(id) => LoadPermission::Admitted,
        Admission::Granted if key.pilot_ids(pod).any(|trial| trial == id) => LoadPermission::Pilot,
        Admission::Granted => LoadPermission::Ungoverned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AdapterGoal::{Absent, AwaitAdmission, Ignore, Resident, UnloadHeld};
    use ListMembership::{Both, EnsureExist, EnsureNotExist};
    use LoadPermission::{Admitted, NotAdmitted, Pilot, Rejected, Ungoverned};

    #[test]
    fn what_has_to_become_true_follows_from_list_standing_and_serving() {
        const RELOAD: AdapterGoal = UnloadHeld { reload: true };
        const KEEP: AdapterGoal = UnloadHeld { reload: false };
        // list, then the goal while not serving and while serving, for each standing.
        let table = [
            (
                EnsureExist,
                [(Ungoverned, Resident, Resident), (Admitted, Resident, Resident), (Pilot, Resident, Resident)],
            ),
            (EnsureNotExist, [(Ungoverned, Absent, RELOAD), (Admitted, Absent, RELOAD), (Pilot, Absent, RELOAD)]),
            (Both, [(Ungoverned, Ignore, Ignore), (Admitted, Ignore, Ignore), (Pilot, Ignore, Ignore)]),
            (
                EnsureExist,
                [
                    (NotAdmitted, AwaitAdmission, AwaitAdmission),
                    (Rejected, Absent, KEEP),
                    (Ungoverned, Resident, Resident),
                ],
            ),
            (EnsureNotExist, [(NotAdmitted, Absent, KEEP), (Rejected, Absent, KEEP), (Ungoverned, Absent, RELOAD)]),
            (Both, [(NotAdmitted, Ignore, Ignore), (Rejected, Ignore, Ignore), (Ungoverned, Ignore, Ignore)]),
        ];
        for (listed, row) in table {
            for (standing, idle, in_service) in row {
                for (serving, goal) in [(false, idle), (true, in_service)] {
                    let (source, origin) = ("/a".into(), ResolvedSource::default());
                    let wish = AdapterSpec {
                        membership: listed,
                        source,
                        resolved: origin,
                        required: false,
                        serving,
                        permission: standing,
                        file_order: 0,
                    };
                    assert_eq!(wish.goal(), goal, "{listed:?} {standing:?} serving={serving}");
                }
            }
        }
    }

    #[test]
    fn the_pilot_goes_first_then_what_serves_then_what_is_required_then_the_file() {
        let wish = |standing, serving, required, order| AdapterSpec {
            membership: EnsureExist,
            source: "/a".into(),
            resolved: ResolvedSource::default(),
            required,
            serving,
            permission: standing,
            file_order: order,
        };
        let mut wishes = [
            wish(Ungoverned, false, false, 0),
            wish(Ungoverned, false, false, 1),
            wish(Ungoverned, false, true, 2),
            wish(Admitted, true, false, 3),
            wish(Pilot, false, false, 4),
        ];
        wishes.sort_by_key(AdapterSpec::priority);
        assert_eq!(wishes.map(|wish| wish.file_order), [4, 3, 2, 0, 1]);
    }
}
