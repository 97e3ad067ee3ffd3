//! The operator's key may vanish for a while.

use super::*;

const KEY: &str = "managed: [\"v*\"]\nserving: [v1]\nrejected: [v2]\n";
const SECOND: Duration = Duration::from_secs(1);
/// A second less than [`KEPT`].
const ALMOST: Duration = Duration::from_secs(299);

struct Bed {
    in_force: InForce,
    now: Instant,
}

impl Bed {
    /// With this content in force.
    fn new(id: &str, key: Option<&str>) -> Self {
        let mut bed = Self { in_force: InForce::default(), now: Instant::now() };
        assert!(bed.takes(id, key));
        bed
    }

    /// Whether a file that lists `id`, with this key beside it, comes into force; where not, it is said why.
    fn takes(&mut self, id: &str, key: Option<&str>) -> bool {
        let user = format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: {id}\n      source: /{id}\n");
        let texts = Texts { user: Ok(user.clone()), operator: key.map(|key| Ok(key.to_owned())) };
        let before = self.in_force.desired().borrow().clone();
        self.in_force.take(texts.read(&"file", "configmap.yaml"), self.now);
        let after = self.in_force.desired().borrow().clone();
        let taken = after.as_ref().is_some_and(|after| after.hash == content_hash(&user, key));
        let said = self.in_force.error().borrow().clone();
        assert_eq!(said.is_none(), taken, "{said:?}");
        assert!(taken || (before == after && said.is_some_and(|said| said.contains(DIRECTIVES_KEY))));
        taken
    }
}

#[test]
fn a_key_that_vanishes_stays_in_force_with_its_file_for_five_minutes() {
    let mut bed = Bed::new("v1", Some(KEY));
    let vanished = bed.now;
    assert!(!bed.takes("v1", None));
    assert_eq!(bed.in_force.waits_until(bed.now), Some(vanished + KEPT));
    bed.now += ALMOST;
    assert!(!bed.takes("v2", None), "another file does not prolong it");
    assert_eq!(bed.in_force.waits_until(bed.now), Some(vanished + KEPT));
    bed.now += SECOND;
    assert_eq!(bed.in_force.waits_until(bed.now), None);
    assert!(bed.takes("v2", None));
    assert_eq!(bed.in_force.desired().borrow().as_ref().and_then(|desired| desired.directives.clone()), None);
    assert!(bed.takes("v3", None), "there is no key any more that could vanish");
}

#[test]
fn a_key_that_comes_back_is_in_force_and_may_vanish_again() {
    let mut bed = Bed::new("v1", Some(KEY));
    assert!(!bed.takes("v1", None));
    bed.now += ALMOST;
    assert!(bed.takes("v2", Some(KEY)));
    assert_eq!(bed.in_force.waits_until(bed.now), None);
    bed.now += 2 * SECOND;
    assert!(!bed.takes("v2", None));
    assert_eq!(bed.in_force.waits_until(bed.now), Some(bed.now + KEPT));
}

#[test]
fn a_key_that_said_nothing_is_not_waited_for() {
    for key in [None, Some("managed: []\n"), Some("")] {
        let mut bed = Bed::new("v1", key);
        assert!(bed.takes("v2", None));
        assert_eq!(bed.in_force.waits_until(bed.now), None);
    }
}

#[test]
fn a_key_that_is_emptied_holds_at_once() {
    assert!(Bed::new("v1", Some(KEY)).takes("v1", Some("")));
}

#[test]
fn a_file_that_cannot_be_read_meanwhile_ends_nothing_and_prolongs_nothing() {
    let mut bed = Bed::new("v1", Some(KEY));
    assert!(!bed.takes("v1", None));
    let before = bed.in_force.desired().borrow().clone();
    bed.now += KEPT;
    bed.in_force.take(Err("nonsense".to_owned()), bed.now);
    assert_eq!((bed.in_force.desired().borrow().clone(), bed.in_force.waits_until(bed.now)), (before, None));
    assert!(bed.takes("v2", None));
}
