//! The last good file stays in force.

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
        self.watch.desired().borrow().clone().expect("a good file was read")
    }

    fn ids(&self) -> Vec<String> {
        self.desired().file.ensure_exist.iter().map(|entry| entry.id.to_string()).collect()
    }

    fn error(&self) -> Option<String> {
        self.watch.error().borrow().clone()
    }
}

#[tokio::test]
async fn what_cannot_be_read_changes_nothing_and_is_reported_until_it_is_mended() {
    let bed = AdaptersWatchTestbed::new(ONE_ADAPTER);
    assert_eq!((bed.ids(), bed.error()), (vec!["v1".to_owned()], None));
    let before = bed.desired();
    for bad in ["", "vLLMLoRAConfig: [", "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n"] {
        bed.write("adapters.yaml", bad).await;
        assert!(bed.error().is_some_and(|error| error.contains("adapters.yaml")), "{bad}: {:?}", bed.error());
        assert_eq!(bed.desired(), before);
    }
    fs::remove_file(bed.folder.path().join("adapters.yaml")).unwrap();
    bed.watch.refresh().await;
    assert!(bed.error().unwrap().contains("no such file"));
    assert_eq!(bed.desired(), before);
    bed.write("adapters.yaml", &ONE_ADAPTER.replace("v1", "v2")).await;
    assert_eq!((bed.ids(), bed.error()), (vec!["v2".to_owned()], None));
}

#[tokio::test]
async fn a_file_in_its_config_map_means_the_same_as_a_plain_one() {
    let plain = AdaptersWatchTestbed::new(ONE_ADAPTER);
    let indented = ONE_ADAPTER.replace('\n', "\n    ");
    let wrapped = AdaptersWatchTestbed::new(&format!(
        "apiVersion: v1\nkind: ConfigMap\ndata:\n  configmap.yaml: |\n    {indented}"
    ));
    assert_eq!(wrapped.desired(), plain.desired());
}

#[tokio::test]
async fn the_operators_key_beside_the_file_is_read_with_it() {
    let bed = AdaptersWatchTestbed::new(ONE_ADAPTER);
    assert_eq!(bed.desired().directives, None);
    bed.write(DIRECTIVES_KEY, DIRECTIVES).await;
    let desired = bed.desired();
    assert_eq!(desired.directives.as_ref().map(|key| key.managed.clone()), Some(vec!["v*".to_owned()]));
    assert_eq!(desired.hash, content_hash(ONE_ADAPTER, Some(DIRECTIVES)));
    bed.write(DIRECTIVES_KEY, "managed: 7").await;
    assert!(bed.error().unwrap().contains(DIRECTIVES_KEY));
    assert_eq!(bed.desired(), desired);
}

#[tokio::test]
async fn before_the_first_good_file_nothing_is_desired() {
    let bed = AdaptersWatchTestbed::new("nonsense");
    assert!(bed.watch.desired().borrow().is_none() && bed.error().is_some());
    bed.write("adapters.yaml", "vLLMLoRAConfig: {}\n").await;
    assert_eq!(bed.desired().file, AdaptersFile::default());
}

#[tokio::test]
async fn changes_are_taken_while_it_runs() {
    let bed = AdaptersWatchTestbed::new(ONE_ADAPTER);
    let (mut desired, stop) = (bed.watch.desired(), CancellationToken::new());
    let change = async {
        fs::write(bed.folder.path().join("adapters.yaml"), ONE_ADAPTER.replace("v1", "v2")).unwrap();
        let has_v2 = |desired: &Option<Arc<DesiredAdapters>>| {
            desired
                .as_ref()
                .is_some_and(|desired| desired.file.ensure_exist.iter().any(|entry| entry.id.as_str() == "v2"))
        };
        desired.wait_for(has_v2).await.unwrap();
        stop.cancel();
    };
    tokio::join!(bed.watch.run(stop.clone()), change);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_stays_away_is_noticed_although_nothing_changes() {
    let bed = AdaptersWatchTestbed::new(ONE_ADAPTER);
    bed.write(DIRECTIVES_KEY, DIRECTIVES).await;
    let (mut desired, stop) = (bed.watch.desired(), CancellationToken::new());
    let before = desired.borrow_and_update().clone();
    let vanish = async {
        fs::remove_file(bed.folder.path().join(DIRECTIVES_KEY)).unwrap();
        let since = Instant::now();
        bed.watch.error().wait_for(Option::is_some).await.unwrap();
        assert_eq!(*desired.borrow(), before);
        desired.changed().await.unwrap();
        assert_eq!(
            (bed.desired().directives.clone(), bed.desired().hash.clone()),
            (None, content_hash(ONE_ADAPTER, None))
        );
        assert!(since.elapsed() >= MISSING_DIRECTIVES_GRACE);
        bed.watch.error().wait_for(Option::is_none).await.unwrap();
        stop.cancel();
    };
    tokio::join!(bed.watch.run(stop.clone()), vanish);
}
