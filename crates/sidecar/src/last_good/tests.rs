//! Tests of directives that vanish for a while.

use super::*;

const DIRECTIVES: &str = "managed: [\"v*\"]\nserving: [v1]\nrejected: [v2]\n";
const SECOND: Duration = Duration::from_secs(1);
/// A second less than [`MISSING_DIRECTIVES_GRACE`].
const ALMOST_GRACE: Duration = Duration::from_secs(299);

struct LastGoodTestbed {
    last_good: LastGoodConfig,
    now: Instant,
}

impl LastGoodTestbed {
    /// Starts with this content active.
    fn new(id: &str, directives: Option<&str>) -> Self {
        let mut testbed = Self { last_good: LastGoodConfig::default(), now: Instant::now() };
        assert!(testbed.accepts(id, directives));
        testbed
    }

    /// Returns whether a file that lists `id`, with these directives, becomes active. If not, checks that the error
    /// says why.
    fn accepts(&mut self, id: &str, directives: Option<&str>) -> bool {
        let user = format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: {id}\n      source: /{id}\n");
        let texts = ConfigTexts { user: Ok(user.clone()), operator: directives.map(|text| Ok(text.to_owned())) };
        let before = self.last_good.desired().borrow().clone();
        self.last_good.update(texts.parse(&"file", "configmap.yaml"), self.now);
        let after = self.last_good.desired().borrow().clone();
        let active = after.as_ref().is_some_and(|after| after.hash == content_hash(&user, directives));
        let error = self.last_good.error().borrow().clone();
        assert_eq!(error.is_none(), active, "{error:?}");
        assert!(active || (before == after && error.is_some_and(|error| error.contains(DIRECTIVES_KEY))));
        active
    }
}

#[test]
fn vanished_directives_stay_active_for_five_minutes() {
    let mut testbed = LastGoodTestbed::new("v1", Some(DIRECTIVES));
    let vanished_at = testbed.now;
    assert!(!testbed.accepts("v1", None));
    assert_eq!(
        testbed.last_good.missing_directives_deadline(testbed.now),
        Some(vanished_at + MISSING_DIRECTIVES_GRACE)
    );
    testbed.now += ALMOST_GRACE;
    assert!(!testbed.accepts("v2", None), "another file must not prolong the grace");
    assert_eq!(
        testbed.last_good.missing_directives_deadline(testbed.now),
        Some(vanished_at + MISSING_DIRECTIVES_GRACE)
    );
    testbed.now += SECOND;
    assert_eq!(testbed.last_good.missing_directives_deadline(testbed.now), None);
    assert!(testbed.accepts("v2", None));
    assert_eq!(testbed.last_good.desired().borrow().as_ref().and_then(|desired| desired.directives.clone()), None);
    assert!(testbed.accepts("v3", None), "no directives are active that could vanish");
}

#[test]
fn restored_directives_restart_the_grace() {
    let mut testbed = LastGoodTestbed::new("v1", Some(DIRECTIVES));
    assert!(!testbed.accepts("v1", None));
    testbed.now += ALMOST_GRACE;
    assert!(testbed.accepts("v2", Some(DIRECTIVES)));
    assert_eq!(testbed.last_good.missing_directives_deadline(testbed.now), None);
    testbed.now += 2 * SECOND;
    assert!(!testbed.accepts("v2", None));
    assert_eq!(
        testbed.last_good.missing_directives_deadline(testbed.now),
        Some(testbed.now + MISSING_DIRECTIVES_GRACE)
    );
}

#[test]
fn empty_directives_have_no_grace() {
    for directives in [None, Some("managed: []\n"), Some("")] {
        let mut testbed = LastGoodTestbed::new("v1", directives);
        assert!(testbed.accepts("v2", None));
        assert_eq!(testbed.last_good.missing_directives_deadline(testbed.now), None);
    }
}

#[test]
fn emptied_directives_are_active_immediately() {
    assert!(LastGoodTestbed::new("v1", Some(DIRECTIVES)).accepts("v1", Some("")));
}

#[test]
fn invalid_file_neither_ends_nor_prolongs_the_grace() {
    let mut testbed = LastGoodTestbed::new("v1", Some(DIRECTIVES));
    assert!(!testbed.accepts("v1", None));
    let before = testbed.last_good.desired().borrow().clone();
    testbed.now += MISSING_DIRECTIVES_GRACE;
    testbed.last_good.update(Err("nonsense".to_owned()), testbed.now);
    assert_eq!(
        (testbed.last_good.desired().borrow().clone(), testbed.last_good.missing_directives_deadline(testbed.now)),
        (before, None)
    );
    assert!(testbed.accepts("v2", None));
}
