//! A store beside the loop: hub names are brought by it, and vLLM never sees one.

use super::*;
use rollora_sidecar::Sources;
use rollora_store::{
    AdapterSource, FetchError, FetchFuture, FetchProgress, FetchReason, FetchedAdapter, ProgressSink, SourceRef,
};
use std::{collections::BTreeMap, path::PathBuf, sync::Mutex};
use tokio::sync::Semaphore;

/// Brings nothing before it is let go on, fails once where it is told to, and knows which fetches were dropped.
#[derive(Debug)]
struct Shelf {
    go: Semaphore,
    failing_once: Mutex<Vec<String>>,
    under_way: Mutex<BTreeMap<String, usize>>,
}

struct Counted<'a>(&'a Shelf, String);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *self.0.under_way.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

impl Shelf {
    fn new(failing_once: &[&str]) -> Arc<Self> {
        let failing_once = Mutex::new(failing_once.iter().map(|name| (*name).to_owned()).collect());
        Arc::new(Self { go: Semaphore::new(0), failing_once, under_way: Mutex::default() })
    }

    fn under_way(&self, name: &str) -> usize {
        self.under_way.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

fn name_of(source: &SourceRef) -> String {
    match source {
        SourceRef::Path(path) => path.clone(),
        SourceRef::Hub(name) => name.to_string(),
    }
}

impl AdapterSource for Shelf {
    fn local_path(&self, source: &SourceRef) -> PathBuf {
        PathBuf::from("/fetched").join(name_of(source))
    }

    fn fetch<'a>(&'a self, source: &'a SourceRef, told: ProgressSink<'a>) -> FetchFuture<'a> {
        Box::pin(async move {
            let name = name_of(source);
            *self.under_way.lock().unwrap().entry(name.clone()).or_default() += 1;
            let _counted = Counted(self, name.clone());
            told(FetchProgress { bytes: 5, total_bytes: Some(10) });
            self.go.acquire().await.unwrap().forget();
            let mut failing = self.failing_once.lock().unwrap();
            if let Some(index) = failing.iter().position(|failing| *failing == name) {
                failing.remove(index);
                let message = "the hub broke off".to_owned();
                return Err(FetchError { reason: FetchReason::HubUnreachable, message, retry_after: None });
            }
            Ok(FetchedAdapter { path: self.local_path(source), commit: Some("c0ffee".to_owned()) })
        })
    }
}

fn from_hub(names: &[&str]) -> DesiredAdapters {
    let mut wanted = desired(names, &[]);
    for entry in &mut wanted.file.ensure_exist {
        if entry.id.as_str().starts_with("hub") {
            entry.source = format!("org/{}", entry.id);
        }
    }
    wanted
}

#[tokio::test]
async fn what_a_hub_has_is_fetched_and_loaded_by_its_path_beside_everything_else() {
    let (fake, shelf) = (Fake::start(Knobs::default()), Shelf::new(&["org/hub1"]));
    let sources = Sources { store: Some(shelf.clone()), allowed: None };
    let mut bed = Bed::start_with(fast(&fake), from_hub(&["hub1", "a"]), |sidecar, _| sidecar.with_sources(sources));
    bed.until_state("a", AdapterState::Verified).await;
    let fetching = |status: &SidecarStatus| {
        let told = status.adapter(&id("hub1")).and_then(|adapter| adapter.fetch.clone());
        told.is_some_and(|told| (told.bytes, told.total_bytes) == (5, Some(10)))
    };
    let status = bed.until("progress", fetching).await;
    assert_eq!(state_of(&status, "hub1"), Some(AdapterState::Fetching));
    assert_eq!(fake.adapters(), ["a"]);
    fake.end();
    fake.begin();
    bed.until_state("a", AdapterState::Verified).await;
    assert_eq!(shelf.under_way("org/hub1"), 1, "it goes on while vLLM starts again");
    shelf.go.add_permits(2);
    let status = bed.until_state("hub1", AdapterState::Verified).await;
    assert_eq!(status.adapter(&id("hub1")).unwrap().fetch.as_ref().unwrap().commit.as_deref(), Some("c0ffee"));
    assert_eq!(fake.count("load hub1 /fetched/org/hub1"), 1);
    assert!(fake.log().iter().all(|asked| !asked.ends_with(" org/hub1")), "{:?}", fake.log());
}

#[tokio::test]
async fn a_fetch_that_nobody_wants_any_more_ends() {
    let (fake, shelf) = (Fake::start(Knobs::default()), Shelf::new(&[]));
    let sources = Sources { store: Some(shelf.clone()), allowed: None };
    let mut bed = Bed::start_with(fast(&fake), from_hub(&["hub1", "a"]), |sidecar, _| sidecar.with_sources(sources));
    bed.until_state("hub1", AdapterState::Fetching).await;
    bed.desire(from_hub(&["a"]));
    bed.until("forgotten", |status| status.adapter(&id("hub1")).is_none()).await;
    bed.until_state("a", AdapterState::Verified).await;
    let ended = async {
        while shelf.under_way("org/hub1") > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), ended).await.expect("the fetch goes on");
    assert_eq!(fake.adapters(), ["a"]);
}
