//! The operator's key may vanish for a while.

use super::*;

const DIRECTIVES: &str = "managed: [\"v*\"]\nserving: [v1]\nrejected: [v2]\n";
const SECOND: Duration = Duration::from_secs(1);
/// A second less than [`KEPT`].
const ALMOST_GRACE: Duration = Duration::from_secs(299);

struct LastGoodTestbed {
    last_good: LastGoodConfig,
    now: Instant,
}

impl LastGoodTestbed {
    /// With this content in force.
    fn new(id: &str, key: Option<&str>) -> Self {
        let mut bed = Self { last_good: LastGoodConfig::default(), now: Instant::now() };
        assert!(bed.accepts(id, key));
        bed
    }

    /// Whether a file that lists `id`, with this key beside it, comes into force; where not, it is said why.
    fn accepts(&mut self, id: &str, key: Option<&str>) -> bool {
        let user = format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: {id}\n      source: /{id}\n");
        let texts = ConfigTexts { user: Ok(user.clone()), operator: key.map(|key| Ok(key.to_owned())) };
        let before = self.last_good.desired().borrow().clone();
        self.last_good.update(texts.parse(&"file", "configmap.yaml"), self.now);
        let after = self.last_good.desired().borrow().clone();
        let taken = after.as_ref().is_some_and(|after| after.hash == content_hash(&user, key));
        let said = self.last_good.error().borrow().clone();
        assert_eq!(said.is_none(), taken, "{said:?}");
        assert!(taken || (before == after && said.is_some_and(|said| said.contains(DIRECTIVES_KEY))));
        taken
    }
}

#[test]
fn a_key_that_vanishes_stays_in_force_with_its_file_for_five_minutes() {
    let mut bed = LastGoodTestbed::new("v1", Some(DIRECTIVES));
    let vanished = bed.now;
    assert!(!bed.accepts("v1", None));
    assert_eq!(bed.last_good.missing_directives_deadline(bed.now), Some(vanished + MISSING_DIRECTIVES_GRACE));
    bed.now += ALMOST_GRACE;
    assert!(!bed.accepts("v2", None), "another file does not prolong it");
    assert_eq!(bed.last_good.missing_directives_deadline(bed.now), Some(vanished + MISSING_DIRECTIVES_GRACE));
    bed.now += SECOND;
    assert_eq!(bed.last_good.missing_directives_deadline(bed.now), None);
    assert!(bed.accepts("v2", None));
    assert_eq!(bed.last_good.desired().borrow().as_ref().and_then(|desired| desired.directives.clone()), None);
    assert!(bed.accepts("v3", None), "there is no key any more that could vanish");
}

#[test]
fn a_key_that_comes_back_is_in_force_and_may_vanish_again() {
    let mut bed = LastGoodTestbed::new("v1", Some(DIRECTIVES));
    assert!(!bed.accepts("v1", None));
    bed.now += ALMOST_GRACE;
    assert!(bed.accepts("v2", Some(DIRECTIVES)));
    assert_eq!(bed.last_good.missing_directives_deadline(bed.now), None);
    bed.now += 2 * SECOND;
    assert!(!bed.accepts("v2", None));
    assert_eq!(bed.last_good.missing_directives_deadline(bed.now), Some(bed.now + MISSING_DIRECTIVES_GRACE));
}

#[test]
fn a_key_that_said_nothing_is_not_waited_for() {
    for key in [None, Some("managed: []\n"), Some("")] {
        let mut bed = LastGoodTestbed::new("v1", key);
        assert!(bed.accepts("v2", None));
        assert_eq!(bed.last_good.missing_directives_deadline(bed.now), None);
    }
}

#[test]
fn a_key_that_is_emptied_holds_at_once() {
    assert!(LastGoodTestbed::new("v1", Some(DIRECTIVES)).accepts("v1", Some("")));
}

#[test]
fn a_file_that_cannot_be_read_meanwhile_ends_nothing_and_prolongs_nothing() {
    let mut bed = LastGoodTestbed::new("v1", Some(DIRECTIVES));
    assert!(!bed.accepts("v1", None));
    let before = bed.last_good.desired().borrow().clone();
    bed.now += MISSING_DIRECTIVES_GRACE;
    bed.last_good.update(Err("nonsense".to_owned()), bed.now);
    assert_eq!(
        (bed.last_good.desired().borrow().clone(), bed.last_good.missing_directives_deadline(bed.now)),
        (before, None)
    );
    assert!(bed.accepts("v2", None));
}
