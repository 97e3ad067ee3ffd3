//! Tests of hub adapters that are fetched into a folder that vLLM reads.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    hub::{COMMIT, FakeHub, HubFault},
    testbed::{ConfigMapMount, SidecarCommand, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use std::fs;

/// An adapters file with one hub adapter, followed by adapters from disk.
fn file_with_hub_adapter(port: u16, disk: &[&str]) -> String {
    let models = "ensureExist:\n    models:";
    adapters_file(port, disk, &[]).replacen(
        models,
        &format!("{models}\n    - id: hubbed\n      source: org/name@v1"),
        1,
    )
}

#[test]
fn hub_adapter_is_fetched_and_loaded_without_delaying_others() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hub = runtime.block_on(FakeHub::start());
    hub.set_fault(HubFault::Cut(1000));
    let (vllm, mut mount, folder) =
        (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new(), tempfile::tempdir().unwrap());
    mount.update(&file_with_hub_adapter(vllm.port(), &["v1"]), None);
    let start = || {
        let start = SidecarCommand::new().path("--config", &mount.file()).path("--adapters-dir", folder.path());
        start.env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", "hf_secret").start()
    };
    let mut sidecar = start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let status = sidecar.status();
    let waiting = status.adapters.iter().find(|adapter| adapter.id.as_str() == "hubbed").unwrap();
    assert_ne!(waiting.state, AdapterState::Verified);
    let loads = || vllm.requests().into_iter().filter(|line| line.starts_with("load hubbed ")).collect::<Vec<_>>();
    assert!(loads().is_empty());

    hub.set_fault(HubFault::None);
    sidecar.wait_for_state("hubbed", AdapterState::Verified);
    let status = sidecar.status();
    let fetched = status.adapters.iter().find(|adapter| adapter.id.as_str() == "hubbed").unwrap();
    let root = fetched.root.clone().unwrap();
    assert!(root.starts_with(folder.path().to_str().unwrap()), "{root}");
    assert!(fs::exists(format!("{root}/adapter_model.safetensors")).unwrap());
    assert_eq!(fetched.source.as_deref(), Some("org/name@v1"));
    let fetch = fetched.fetch.as_ref().unwrap();
    assert_eq!((fetch.commit.as_deref(), Some(fetch.bytes)), (Some(COMMIT), fetch.total_bytes));
    assert_eq!(loads(), [format!("load hubbed {root}")]);
    assert!(hub.requests().iter().all(|request| request.token.as_deref() == Some("Bearer hf_secret")));

    // After a restart of the sidecar nothing is fetched or loaded again.
    let request_count = hub.requests().len();
    drop(sidecar);
    let mut sidecar = start();
    sidecar.wait_for_state("hubbed", AdapterState::Verified);
    assert_eq!((hub.requests().len(), loads().len()), (request_count, 1));
}
