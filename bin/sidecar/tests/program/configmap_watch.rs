//! Tests with the adapters file from a watch of one ConfigMap.

use crate::{
    api_server::FakeApiServer,
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::{adapters::content_hash, names::DIRECTIVES_KEY, sidecar_status::AdapterState};
use std::time::{Duration, Instant};

const CONFIGMAP_NAME: &str = "adapters";

/// A fake vLLM, a fake API server, and a mount that is empty at first.
struct ConfigMapTestbed {
    vllm: FakeVllm,
    api: FakeApiServer,
    mount: ConfigMapMount,
}

impl ConfigMapTestbed {
    fn new() -> Self {
        Self {
            vllm: FakeVllm::start(FakeVllmConfig::default()),
            api: FakeApiServer::start(),
            mount: ConfigMapMount::new(),
        }
    }

    fn start(&self, more: &[&str]) -> SidecarProgram {
        SidecarCommand::new()
            .path("--config", &self.mount.file())
            .args(["--configmap", "default/adapters", "--pod-name", "pod-1"])
            .args(more.iter().copied())
            .env("KUBECONFIG", self.api.kubeconfig())
            .start()
    }

    fn file_text(&self, exist: &[&str], not_exist: &[&str]) -> String {
        adapters_file(self.vllm.port(), exist, not_exist)
    }

    fn apply(&self, exist: &[&str], not_exist: &[&str]) {
        self.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", &self.file_text(exist, not_exist))]);
    }

    fn update_mount(&mut self, exist: &[&str]) {
        let text = self.file_text(exist, &[]);
        self.mount.update(&text, None);
    }
}

fn wait_for_config_error(sidecar: &mut SidecarProgram, text: &str) -> String {
    sidecar.wait_for(text, |sidecar| sidecar.status().config.error.filter(|error| error.contains(text)))
}

#[test]
fn change_is_applied_in_milliseconds_with_the_operators_hash() {
    let testbed = ConfigMapTestbed::new();
    testbed.apply(&["v0"], &[]);
    let mut sidecar = testbed.start(&[]);
    sidecar.wait_for_state("v0", AdapterState::Verified);
    let mut times = Vec::new();
    for round in 1..=5 {
        let id = format!("v{round}");
        let load = format!("load {id} /adapters/{id}");
        let written_at = Instant::now();
        testbed.apply(&["v0", &id], &[]);
        sidecar.wait_for(&load, |_| (testbed.vllm.count_requests(&load) == 1).then_some(()));
        times.push(written_at.elapsed());
    }
    times.sort();
    println!("from the write to the load: {times:?}");
    assert!(times[2] < Duration::from_millis(200), "{times:?}");
    let (user, directives) = (testbed.file_text(&["v0"], &[]), "serving: [v0]\n");
    testbed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", &user), (DIRECTIVES_KEY, directives), ("other", "text")]);
    let hash = Some(content_hash(&user, Some(directives)));
    sidecar.wait_for("the hash", |sidecar| (sidecar.status().config.hash == hash).then_some(()));
    assert!(sidecar.status().config.operator_directives);
}

#[test]
fn vanished_directives_keep_the_last_content_active() {
    let testbed = ConfigMapTestbed::new();
    let (user, directives) =
        (testbed.file_text(&["v1", "deadly"], &[]), "managed: [\"*\"]\nadmitted: [v1]\nrejected: [deadly]\n");
    testbed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", &user), (DIRECTIVES_KEY, directives)]);
    let mut sidecar = testbed.start(&[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    testbed.apply(&["v1", "v2", "deadly"], &[]);
    wait_for_config_error(&mut sidecar, "`rollora.yaml` has vanished");
    assert_eq!(sidecar.status().config.hash, Some(content_hash(&user, Some(directives))));
    assert_eq!((sidecar.adapter_state("v2"), sidecar.adapter_state("deadly")), (None, Some(AdapterState::Rejected)));
    testbed
        .api
        .apply(CONFIGMAP_NAME, &[("configmap.yaml", &testbed.file_text(&["v1", "v2"], &[])), (DIRECTIVES_KEY, "")]);
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn only_the_one_configmap_is_requested() {
    let testbed = ConfigMapTestbed::new();
    testbed.apply(&["v1"], &[]);
    testbed.api.apply("another", &[("configmap.yaml", "nothing of ours")]);
    let mut sidecar = testbed.start(&["--unload-grace", "1ms"]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    testbed.apply(&[], &["v1"]);
    sidecar.wait_for_state("v1", AdapterState::Gone);
    let mut requests = testbed.api.requests();
    requests.sort();
    requests.dedup();
    let only = ["get default/adapters", "list default?metadata.name=adapters", "watch default?metadata.name=adapters"];
    assert_eq!(requests, only);
}

#[test]
fn api_outage_keeps_adapters_and_changes_apply_after_it() {
    let mut testbed = ConfigMapTestbed::new();
    testbed.apply(&["v1"], &[]);
    let mut sidecar = testbed.start(&[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    testbed.api.stop();
    wait_for_config_error(&mut sidecar, "the API server cannot be reached");
    assert!(sidecar.readiness().0);
    // A vLLM that restarts during the outage gets its adapters back.
    testbed.vllm.kill();
    sidecar.wait_for("not ready", |sidecar| (!sidecar.readiness().0).then_some(()));
    testbed.vllm.restart();
    sidecar.wait_until_ready();
    assert_eq!(testbed.vllm.adapters(), ["v1"]);
    testbed.apply(&["v1", "v2"], &[]);
    testbed.api.restart();
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn deleted_configmap_stays_active_and_is_reported() {
    let testbed = ConfigMapTestbed::new();
    testbed.apply(&["v1"], &[]);
    let mut sidecar = testbed.start(&[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    testbed.api.delete(CONFIGMAP_NAME);
    wait_for_config_error(&mut sidecar, "ConfigMap default/adapters does not exist");
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
    testbed.apply(&["v1", "v2"], &[]);
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn mount_is_used_only_until_the_api_delivers_valid_content() {
    let mut testbed = ConfigMapTestbed::new();
    testbed.update_mount(&["mounted"]);
    testbed.api.set_forbidden(true);
    let mut sidecar = testbed.start(&[]);
    sidecar.wait_for_state("mounted", AdapterState::Verified);
    let error = wait_for_config_error(&mut sidecar, "it is forbidden to list configmaps/adapters in namespace default");
    assert!(error.contains("until then the mounted file"), "{error}");
    testbed.update_mount(&["mounted", "again"]);
    sidecar.wait_for_state("again", AdapterState::Verified);
    testbed.api.set_forbidden(false);
    wait_for_config_error(&mut sidecar, "ConfigMap default/adapters does not exist");
    // The first content from the API is not valid: the mount is still used.
    testbed.api.apply(CONFIGMAP_NAME, &[("adapters.yaml", "wrong key")]);
    let error = wait_for_config_error(&mut sidecar, "has no text under `configmap.yaml` and holds `adapters.yaml`");
    assert!(error.contains("--configmap-key"), "{error}");
    testbed.apply(&["v1"], &[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
    let hash = sidecar.status().config.hash;
    testbed.update_mount(&["mounted", "late"]);
    testbed.apply(&["v1", "v2"], &[]);
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_ne!(sidecar.status().config.hash, hash);
    assert_eq!(sidecar.adapter_state("late"), None, "the mount must be ignored after the API has delivered");
}

#[test]
fn mount_is_used_while_the_api_server_does_not_answer() {
    let mut testbed = ConfigMapTestbed::new();
    testbed.update_mount(&["mounted"]);
    testbed.apply(&["v1"], &[]);
    testbed.api.mute_verb("list");
    let mut sidecar = testbed.start(&[]);
    sidecar.wait_for_state("mounted", AdapterState::Verified);
    wait_for_config_error(&mut sidecar, "did not respond");
    testbed.api.unmute();
    sidecar.wait_for_state("v1", AdapterState::Verified);
}

#[test]
fn invalid_content_changes_nothing() {
    let testbed = ConfigMapTestbed::new();
    testbed.apply(&["v1"], &[]);
    let mut sidecar = testbed.start(&[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    testbed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", "vLLMLoRAConfig: [")]);
    wait_for_config_error(&mut sidecar, "ConfigMap default/adapters, key configmap.yaml");
    let good = testbed.file_text(&["v1"], &[]);
    testbed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", &good), (DIRECTIVES_KEY, "serving: 1")]);
    wait_for_config_error(&mut sidecar, "rollora.yaml next to ConfigMap default/adapters");
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
}

#[test]
fn configmap_key_can_be_configured() {
    let testbed = ConfigMapTestbed::new();
    testbed.api.apply(CONFIGMAP_NAME, &[("adapters.yaml", &testbed.file_text(&["v1"], &[]))]);
    let mut sidecar = testbed.start(&["--configmap-key", "adapters.yaml"]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
}

/// Starts a sidecar whose adapter was just used and then unlisted, so that it waits for its unload grace.
fn start_with_retiring_v1(testbed: &ConfigMapTestbed) -> SidecarProgram {
    testbed.apply(&["v1"], &[]);
    let mut sidecar = testbed.start(&["--unload-grace", "2s"]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    testbed.vllm.mark_used("v1");
    testbed.apply(&[], &["v1"]);
    sidecar.wait_for_state("v1", AdapterState::Unloading);
    sidecar.wait_for("the grace", |sidecar| sidecar.status().adapters.iter().find_map(|adapter| adapter.last_used));
    sidecar
}

#[test]
fn configmap_is_read_live_before_an_unload() {
    let testbed = ConfigMapTestbed::new();
    let mut sidecar = start_with_retiring_v1(&testbed);
    testbed.api.mute_verb("watch");
    testbed.apply(&["v1"], &[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert_eq!(testbed.vllm.count_requests("unload v1"), 0, "it was listed again, which only a live read shows");
    assert!(testbed.api.requests().contains(&"get default/adapters".to_owned()));
    assert_eq!(sidecar.status().config.error, None, "the API server answers, so there must be no error");
    assert!(!sidecar.has_logged("has not answered yet"));
}

#[test]
fn unload_goes_on_if_the_api_server_does_not_answer() {
    let testbed = ConfigMapTestbed::new();
    let mut sidecar = start_with_retiring_v1(&testbed);
    testbed.api.mute_verb("get");
    sidecar.wait_for_state("v1", AdapterState::Gone);
    assert_eq!(testbed.vllm.count_requests("unload v1"), 1);
}
