//! Tests of the loop with an adapter source: hub adapters are fetched, and vLLM never gets a hub name.

use super::*;
use rollora_adapter_source::{
    AdapterSource, FetchError, FetchFuture, FetchProgress, FetchReason, FetchedAdapter, ProgressSink, SourceRef,
};
use rollora_sidecar::AdapterSourcePolicy;
use std::{collections::BTreeMap, path::PathBuf, sync::Mutex};
use tokio::sync::Semaphore;

/// A fake adapter source: fetches wait for a permit, fail once for chosen names, and are counted until dropped.
#[derive(Debug)]
struct FakeAdapterSource {
    permits: Semaphore,
    failing_once: Mutex<Vec<String>>,
    active_fetches: Mutex<BTreeMap<String, usize>>,
}

struct FetchGuard<'a>(&'a FakeAdapterSource, String);

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        *self.0.active_fetches.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

impl FakeAdapterSource {
    fn new(failing_once: &[&str]) -> Arc<Self> {
        let failing_once = Mutex::new(failing_once.iter().map(|name| (*name).to_owned()).collect());
        Arc::new(Self { permits: Semaphore::new(0), failing_once, active_fetches: Mutex::default() })
    }

    fn active_fetch_count(&self, name: &str) -> usize {
        self.active_fetches.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

fn source_name(source: &SourceRef) -> String {
    match source {
        SourceRef::Path(path) => path.clone(),
        SourceRef::Hub(name) => name.to_string(),
    }
}

impl AdapterSource for FakeAdapterSource {
    fn local_path(&self, source: &SourceRef) -> PathBuf {
        PathBuf::from("/fetched").join(source_name(source))
    }

    fn fetch<'a>(&'a self, source: &'a SourceRef, on_progress: ProgressSink<'a>) -> FetchFuture<'a> {
        Box::pin(async move {
            let name = source_name(source);
            *self.active_fetches.lock().unwrap().entry(name.clone()).or_default() += 1;
            let _guard = FetchGuard(self, name.clone());
            on_progress(FetchProgress { bytes: 5, total_bytes: Some(10) });
            self.permits.acquire().await.unwrap().forget();
            let mut failing = self.failing_once.lock().unwrap();
            if let Some(index) = failing.iter().position(|failing| *failing == name) {
                failing.remove(index);
                let message = "the hub closed the connection".to_owned();
                return Err(FetchError { reason: FetchReason::HubUnreachable, message, retry_after: None });
            }
            Ok(FetchedAdapter { path: self.local_path(source), commit: Some("c0ffee".to_owned()) })
        })
    }
}

fn desired_from_hub(names: &[&str]) -> DesiredAdapters {
    let mut desired = desired(names, &[]);
    for entry in &mut desired.file.ensure_exist {
        if entry.id.as_str().starts_with("hub") {
            entry.source = format!("org/{}", entry.id);
        }
    }
    desired
}

#[tokio::test]
async fn hub_adapter_is_fetched_and_loaded_without_delaying_others() {
    let (fake, adapter_source) = (FakeVllm::start(FakeVllmConfig::default()), FakeAdapterSource::new(&["org/hub1"]));
    let policy = AdapterSourcePolicy { adapter_source: Some(adapter_source.clone()), allowed: None };
    let mut testbed = LoopTestbed::start_with(fast_config(&fake), desired_from_hub(&["hub1", "a"]), |sidecar, _| {
        sidecar.with_source_policy(policy)
    });
    testbed.wait_for_state("a", AdapterState::Verified).await;
    let fetching = |status: &SidecarStatus| {
        let fetch = status.adapter(&id("hub1")).and_then(|adapter| adapter.fetch.clone());
        fetch.is_some_and(|fetch| (fetch.bytes, fetch.total_bytes) == (5, Some(10)))
    };
    let status = testbed.wait_for("progress", fetching).await;
    assert_eq!(adapter_state(&status, "hub1"), Some(AdapterState::Fetching));
    assert_eq!(fake.adapters(), ["a"]);
    fake.kill();
    fake.restart();
    testbed.wait_for_state("a", AdapterState::Verified).await;
    assert_eq!(adapter_source.active_fetch_count("org/hub1"), 1, "the fetch must continue while vLLM restarts");
    adapter_source.permits.add_permits(2);
    let status = testbed.wait_for_state("hub1", AdapterState::Verified).await;
    assert_eq!(status.adapter(&id("hub1")).unwrap().fetch.as_ref().unwrap().commit.as_deref(), Some("c0ffee"));
    assert_eq!(fake.count_requests("load hub1 /fetched/org/hub1"), 1);
    assert!(fake.requests().iter().all(|request| !request.ends_with(" org/hub1")), "{:?}", fake.requests());
}

#[tokio::test]
async fn unwanted_fetch_is_canceled() {
    let (fake, adapter_source) = (FakeVllm::start(FakeVllmConfig::default()), FakeAdapterSource::new(&[]));
    let policy = AdapterSourcePolicy { adapter_source: Some(adapter_source.clone()), allowed: None };
    let mut testbed = LoopTestbed::start_with(fast_config(&fake), desired_from_hub(&["hub1", "a"]), |sidecar, _| {
        sidecar.with_source_policy(policy)
    });
    testbed.wait_for_state("hub1", AdapterState::Fetching).await;
    testbed.set_desired(desired_from_hub(&["a"]));
    testbed.wait_for("no status of hub1", |status| status.adapter(&id("hub1")).is_none()).await;
    testbed.wait_for_state("a", AdapterState::Verified).await;
    let ended = async {
        while adapter_source.active_fetch_count("org/hub1") > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), ended).await.expect("the fetch was not canceled");
    assert_eq!(fake.adapters(), ["a"]);
}
