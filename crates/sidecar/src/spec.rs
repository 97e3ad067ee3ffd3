//! Merges the user's adapters file and the operator directives into one spec per id, for one server. Pure.

use crate::source::{AdapterSourcePolicy, ResolvedSource, same_source};
use rollora_api::{
    adapters::{AdapterEntry, DesiredAdapters},
    names::AdapterId,
    operator_directives::{Admission, OperatorDirectives},
};
use std::{cmp::Reverse, collections::BTreeMap};

/// The specs for one server, by id. An id in neither list has no spec and is left alone.
pub type AdapterSpecs = BTreeMap<AdapterId, AdapterSpec>;

/// What the adapters file and the operator directives want of one id on one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSpec {
    /// Which lists of the file name the id.
    pub membership: ListMembership,
    /// The `source` of the entry in the file.
    pub source: String,
    /// What the source resolves to on this machine.
    pub resolved: ResolvedSource,
    /// Whether the server is unready until the adapter is verified.
    pub required: bool,
    /// Whether the directives list it as serving: it has weight, or a rollback could need it.
    pub serving: bool,
    /// Whether this server may load it, and why.
    pub permission: LoadPermission,
    /// The position of the entry in the file: earlier entries are loaded first.
    pub file_order: usize,
}

/// Which lists of the file name an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListMembership {
    /// Listed only under `ensureExist`.
    EnsureExist,
    /// Listed only under `ensureNotExist`.
    EnsureNotExist,
    /// Listed under both, which means nothing: the id is left alone.
    Both,
}

/// Whether this server may load an id, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadPermission {
    /// No Rollout governs the id, so it may be loaded.
    Ungoverned,
    /// The operator has admitted the id to every server.
    Admitted,
    /// The id is on trial on this server.
    Pilot,
    /// A Rollout governs the id, and it is not admitted to this server yet.
    NotAdmitted,
    /// The operator has rejected the id after a failed trial.
    Rejected,
}

/// The state that an id must reach on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterGoal {
    /// Loaded and verified by a completion.
    Resident,
    /// Not loaded before it is admitted; if it is already registered, it stays.
    AwaitAdmission,
    /// Unwanted, but kept because it is serving.
    UnloadHeld {
        /// Whether it is loaded again after a restart of the server.
        reload: bool,
    },
    /// Unloaded as soon as it is idle.
    Absent,
    /// Left alone: neither loaded nor unloaded.
    Ignore,
}

impl AdapterSpec {
    /// Returns the state that the id must reach.
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

    /// Returns whether a registered `root` is the source of this spec: its path, or its hub name if vLLM downloaded it.
    pub fn matches_root(&self, root: &str) -> bool {
        same_source(root, &self.resolved.root) || same_source(root, &self.source)
    }

    /// Returns the sort key of loads: the pilot first, then serving ids, then required ones, then the order of the
    /// file.
    pub fn priority(&self) -> impl Ord + use<> {
        (self.priority_class(), self.file_order)
    }

    /// Returns the sort key of loads without the order of the file.
    pub fn priority_class(&self) -> impl Ord + use<> {
        Reverse((self.permission == LoadPermission::Pilot, self.serving, self.required))
    }
}

/// Returns the specs of `desired` for the server `pod`, with sources resolved by `source_policy`.
pub fn adapter_specs(desired: &DesiredAdapters, pod: &str, source_policy: &AdapterSourcePolicy) -> AdapterSpecs {
    let mut specs = AdapterSpecs::new();
    let exist = desired.file.ensure_exist.iter().map(|entry| (entry, ListMembership::EnsureExist));
    let not_exist = desired.file.ensure_not_exist.iter().map(|entry| (entry, ListMembership::EnsureNotExist));
    for (file_order, (entry, membership)) in exist.chain(not_exist).enumerate() {
        specs
            .entry(entry.id.clone())
            .and_modify(|spec| {
                if spec.membership != membership {
                    spec.membership = ListMembership::Both;
                }
            })
            .or_insert_with(|| AdapterSpec {
                resolved: source_policy.resolve(&entry.id, &entry.source),
                ..adapter_spec(entry, membership, desired.directives.as_ref(), pod, file_order)
            });
    }
    specs
}

fn adapter_spec(
    entry: &AdapterEntry,
    membership: ListMembership,
    directives: Option<&OperatorDirectives>,
    pod: &str,
    file_order: usize,
) -> AdapterSpec {
    AdapterSpec {
        membership,
        source: entry.source.clone(),
        resolved: ResolvedSource::default(),
        required: entry.required,
        serving: directives.is_some_and(|directives| directives.serving.contains(&entry.id)),
        permission: directives
            .map_or(LoadPermission::Ungoverned, |directives| load_permission(directives, &entry.id, pod)),
        file_order,
    }
}

fn load_permission(directives: &OperatorDirectives, id: &AdapterId, pod: &str) -> LoadPermission {
    match directives.admission(id, pod) {
        Admission::Rejected => LoadPermission::Rejected,
        Admission::Waiting => LoadPermission::NotAdmitted,
        Admission::Granted if directives.admitted.contains(id) => LoadPermission::Admitted,
        Admission::Granted if directives.pilot_ids(pod).any(|trial| trial == id) => LoadPermission::Pilot,
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
    fn goal_follows_from_lists_permission_and_serving() {
        const HELD_RELOAD: AdapterGoal = UnloadHeld { reload: true };
        const HELD: AdapterGoal = UnloadHeld { reload: false };
        // Each row: the lists, then per permission the goal while not serving and while serving.
        let table = [
            (
                EnsureExist,
                [(Ungoverned, Resident, Resident), (Admitted, Resident, Resident), (Pilot, Resident, Resident)],
            ),
            (
                EnsureNotExist,
                [(Ungoverned, Absent, HELD_RELOAD), (Admitted, Absent, HELD_RELOAD), (Pilot, Absent, HELD_RELOAD)],
            ),
            (Both, [(Ungoverned, Ignore, Ignore), (Admitted, Ignore, Ignore), (Pilot, Ignore, Ignore)]),
            (
                EnsureExist,
                [
                    (NotAdmitted, AwaitAdmission, AwaitAdmission),
                    (Rejected, Absent, HELD),
                    (Ungoverned, Resident, Resident),
                ],
            ),
            (
                EnsureNotExist,
                [(NotAdmitted, Absent, HELD), (Rejected, Absent, HELD), (Ungoverned, Absent, HELD_RELOAD)],
            ),
            (Both, [(NotAdmitted, Ignore, Ignore), (Rejected, Ignore, Ignore), (Ungoverned, Ignore, Ignore)]),
        ];
        for (membership, row) in table {
            for (permission, not_serving, while_serving) in row {
                for (serving, goal) in [(false, not_serving), (true, while_serving)] {
                    let (source, resolved) = ("/a".into(), ResolvedSource::default());
                    let spec = AdapterSpec {
                        membership,
                        source,
                        resolved,
                        required: false,
                        serving,
                        permission,
                        file_order: 0,
                    };
                    assert_eq!(spec.goal(), goal, "{membership:?} {permission:?} serving={serving}");
                }
            }
        }
    }

    #[test]
    fn priority_is_pilot_then_serving_then_required_then_file_order() {
        let spec = |permission, serving, required, file_order| AdapterSpec {
            membership: EnsureExist,
            source: "/a".into(),
            resolved: ResolvedSource::default(),
            required,
            serving,
            permission,
            file_order,
        };
        let mut specs = [
            spec(Ungoverned, false, false, 0),
            spec(Ungoverned, false, false, 1),
            spec(Ungoverned, false, true, 2),
            spec(Admitted, true, false, 3),
            spec(Pilot, false, false, 4),
        ];
        specs.sort_by_key(AdapterSpec::priority);
        assert_eq!(specs.map(|spec| spec.file_order), [4, 3, 2, 0, 1]);
    }
}
