//! Adapters of a hub, brought into a folder that vLLM reads.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    hub::{COMMIT, FakeHub, HubFault},
    testbed::{ConfigMapMount, SidecarCommand, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use std::fs;

/// The file, with one adapter of the hub before those of the disk.
fn file_with_hub_adapter(port: u16, disk: &[&str]) -> String {
    let models = "ensureExist:\n    models:";
    adapters_file(port, disk, &[]).replacen(
        models,
        &format!("{models}\n    - id: hubbed\n      source: org/name@v1"),
        1,
    )
}

#[test]
fn an_adapter_of_the_hub_is_fetched_and_loaded_by_its_path_and_holds_up_nobody() {
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
    let away = sidecar.status();
    let waiting = away.adapters.iter().find(|adapter| adapter.id.as_str() == "hubbed").unwrap();
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
    assert!(hub.requests().iter().all(|asked| asked.token.as_deref() == Some("Bearer hf_secret")));

    // What it finds again after a restart is what it wants: nothing is fetched or loaded anew.
    let asked = hub.requests().len();
    drop(sidecar);
    let mut sidecar = start();
    sidecar.wait_for_state("hubbed", AdapterState::Verified);
    assert_eq!((hub.requests().len(), loads().len()), (asked, 1));
}
