//! Tests that the last good file stays active.

use super::*;
use crate::last_good::MISSING_DIRECTIVES_GRACE;
use rollora_api::adapters::{AdaptersFile, content_hash};
use std::fs;
use tempfile::TempDir;

const ONE_ADAPTER: &str = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n      source: /adapters/v1\n";
const DIRECTIVES: &str = "managed: [\"v*\"]\n";

struct AdaptersWatchTestbed {
    folder: TempDir,
    watch: AdaptersWatch,
}

impl AdaptersWatchTestbed {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("adapters.yaml"), text).unwrap();
        let watch = AdaptersWatch::open(folder.path().join("adapters.yaml"), "configmap.yaml");
        Self { folder, watch }
    }

    async fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
        self.watch.refresh().await;
    }

    fn desired(&self) -> Arc<DesiredAdapters> {
        self.watch.desired().borrow().clone().expect("no valid file was read")
    }

    fn ids(&self) -> Vec<String> {
        self.desired().file.ensure_exist.iter().map(|entry| entry.id.to_string()).collect()
    }

    fn error(&self) -> Option<String> {
        self.watch.error().borrow().clone()
    }
}

#[tokio::test]
async fn invalid_file_is_reported_and_changes_nothing_until_fixed() {
    let testbed = AdaptersWatchTestbed::new(ONE_ADAPTER);
    assert_eq!((testbed.ids(), testbed.error()), (vec!["v1".to_owned()], None));
    let previous = testbed.desired();
    for bad in ["", "vLLMLoRAConfig: [", "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n"] {
        testbed.write("adapters.yaml", bad).await;
        assert!(testbed.error().is_some_and(|error| error.contains("adapters.yaml")), "{bad}: {:?}", testbed.error());
        assert_eq!(testbed.desired(), previous);
    }
    fs::remove_file(testbed.folder.path().join("adapters.yaml")).unwrap();
    testbed.watch.refresh().await;
    assert!(testbed.error().unwrap().contains("no such file"));
    assert_eq!(testbed.desired(), previous);
    testbed.write("adapters.yaml", &ONE_ADAPTER.replace("v1", "v2")).await;
    assert_eq!((testbed.ids(), testbed.error()), (vec!["v2".to_owned()], None));
}

#[tokio::test]
async fn file_in_its_configmap_equals_plain_file() {
    let plain = AdaptersWatchTestbed::new(ONE_ADAPTER);
    let indented = ONE_ADAPTER.replace('\n', "\n    ");
    let wrapped = AdaptersWatchTestbed::new(&format!(
        "apiVersion: v1\nkind: ConfigMap\ndata:\n  configmap.yaml: |\n    {indented}"
    ));
    assert_eq!(wrapped.desired(), plain.desired());
}

#[tokio::test]
async fn directives_in_the_same_folder_are_read_with_the_file() {
    let testbed = AdaptersWatchTestbed::new(ONE_ADAPTER);
    assert_eq!(testbed.desired().directives, None);
    testbed.write(DIRECTIVES_KEY, DIRECTIVES).await;
    let desired = testbed.desired();
    assert_eq!(desired.directives.as_ref().map(|directives| directives.managed.clone()), Some(vec!["v*".to_owned()]));
    assert_eq!(desired.hash, content_hash(ONE_ADAPTER, Some(DIRECTIVES)));
    testbed.write(DIRECTIVES_KEY, "managed: 7").await;
    assert!(testbed.error().unwrap().contains(DIRECTIVES_KEY));
    assert_eq!(testbed.desired(), desired);
}

#[tokio::test]
async fn nothing_is_desired_before_the_first_valid_file() {
    let testbed = AdaptersWatchTestbed::new("nonsense");
    assert!(testbed.watch.desired().borrow().is_none() && testbed.error().is_some());
    testbed.write("adapters.yaml", "vLLMLoRAConfig: {}\n").await;
    assert_eq!(testbed.desired().file, AdaptersFile::default());
}

#[tokio::test]
async fn change_is_published_while_running() {
    let testbed = AdaptersWatchTestbed::new(ONE_ADAPTER);
    let (mut desired, stop) = (testbed.watch.desired(), CancellationToken::new());
    let change = async {
        fs::write(testbed.folder.path().join("adapters.yaml"), ONE_ADAPTER.replace("v1", "v2")).unwrap();
        let has_v2 = |desired: &Option<Arc<DesiredAdapters>>| {
            desired
                .as_ref()
                .is_some_and(|desired| desired.file.ensure_exist.iter().any(|entry| entry.id.as_str() == "v2"))
        };
        desired.wait_for(has_v2).await.unwrap();
        stop.cancel();
    };
    tokio::join!(testbed.watch.run(stop.clone()), change);
}

#[tokio::test(start_paused = true)]
async fn missing_directives_expire_without_another_file_change() {
    let testbed = AdaptersWatchTestbed::new(ONE_ADAPTER);
    testbed.write(DIRECTIVES_KEY, DIRECTIVES).await;
    let (mut desired, stop) = (testbed.watch.desired(), CancellationToken::new());
    let previous = desired.borrow_and_update().clone();
    let removal = async {
        fs::remove_file(testbed.folder.path().join(DIRECTIVES_KEY)).unwrap();
        let since = Instant::now();
        testbed.watch.error().wait_for(Option::is_some).await.unwrap();
        assert_eq!(*desired.borrow(), previous);
        desired.changed().await.unwrap();
        assert_eq!(
            (testbed.desired().directives.clone(), testbed.desired().hash.clone()),
            (None, content_hash(ONE_ADAPTER, None))
        );
        assert!(since.elapsed() >= MISSING_DIRECTIVES_GRACE);
        testbed.watch.error().wait_for(Option::is_none).await.unwrap();
        stop.cancel();
    };
    tokio::join!(testbed.watch.run(stop.clone()), removal);
}
