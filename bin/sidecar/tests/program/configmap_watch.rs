//! Fed by a watch of one ConfigMap.

use crate::{
    api_server::FakeApiServer,
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::{adapters::content_hash, names::DIRECTIVES_KEY, sidecar_status::AdapterState};
use std::time::{Duration, Instant};

const CONFIGMAP_NAME: &str = "adapters";

/// A vLLM, an API server, and a mount that is empty at first.
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

fn wait_for_config_error(sidecar: &mut SidecarProgram, words: &str) -> String {
    sidecar.wait_for(words, |sidecar| sidecar.status().config.error.filter(|said| said.contains(words)))
}

#[test]
fn a_change_is_taken_in_milliseconds_with_the_hash_that_the_operator_computes() {
    let bed = ConfigMapTestbed::new();
    bed.apply(&["v0"], &[]);
    let mut sidecar = bed.start(&[]);
    sidecar.wait_for_state("v0", AdapterState::Verified);
    let mut times = Vec::new();
    for round in 1..=5 {
        let id = format!("v{round}");
        let load = format!("load {id} /adapters/{id}");
        let written = Instant::now();
        bed.apply(&["v0", &id], &[]);
        sidecar.wait_for(&load, |_| (bed.vllm.count_requests(&load) == 1).then_some(()));
        times.push(written.elapsed());
    }
    times.sort();
    println!("from the write to the load: {times:?}");
    assert!(times[2] < Duration::from_millis(200), "{times:?}");
    let (user, key) = (bed.file_text(&["v0"], &[]), "serving: [v0]\n");
    bed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", &user), (DIRECTIVES_KEY, key), ("other", "text")]);
    let hash = Some(content_hash(&user, Some(key)));
    sidecar.wait_for("the hash", |sidecar| (sidecar.status().config.hash == hash).then_some(()));
    assert!(sidecar.status().config.operator_directives);
}

#[test]
fn a_key_that_vanishes_in_one_write_is_waited_for() {
    let bed = ConfigMapTestbed::new();
    let (user, key) = (bed.file_text(&["v1", "deadly"], &[]), "managed: [\"*\"]\nadmitted: [v1]\nrejected: [deadly]\n");
    bed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", &user), (DIRECTIVES_KEY, key)]);
    let mut sidecar = bed.start(&[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    bed.apply(&["v1", "v2", "deadly"], &[]);
    wait_for_config_error(&mut sidecar, "`rollora.yaml` has vanished");
    assert_eq!(sidecar.status().config.hash, Some(content_hash(&user, Some(key))));
    assert_eq!((sidecar.adapter_state("v2"), sidecar.adapter_state("deadly")), (None, Some(AdapterState::Rejected)));
    bed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", &bed.file_text(&["v1", "v2"], &[])), (DIRECTIVES_KEY, "")]);
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn nothing_but_the_one_configmap_is_asked_for() {
    let bed = ConfigMapTestbed::new();
    bed.apply(&["v1"], &[]);
    bed.api.apply("another", &[("configmap.yaml", "nothing of ours")]);
    let mut sidecar = bed.start(&["--unload-grace", "1ms"]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    bed.apply(&[], &["v1"]);
    sidecar.wait_for_state("v1", AdapterState::Gone);
    let mut asked = bed.api.requests();
    asked.sort();
    asked.dedup();
    let only = ["get default/adapters", "list default?metadata.name=adapters", "watch default?metadata.name=adapters"];
    assert_eq!(asked, only);
}

#[test]
fn an_outage_takes_nothing_back_and_what_changed_meanwhile_is_taken_after_it() {
    let mut bed = ConfigMapTestbed::new();
    bed.apply(&["v1"], &[]);
    let mut sidecar = bed.start(&[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    bed.api.stop();
    wait_for_config_error(&mut sidecar, "the API server cannot be reached");
    assert!(sidecar.readiness().0);
    // A vLLM that restarts meanwhile gets back what it had.
    bed.vllm.kill();
    sidecar.wait_for("not ready", |sidecar| (!sidecar.readiness().0).then_some(()));
    bed.vllm.restart();
    sidecar.wait_until_ready();
    assert_eq!(bed.vllm.adapters(), ["v1"]);
    bed.apply(&["v1", "v2"], &[]);
    bed.api.restart();
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn a_configmap_that_is_deleted_stays_in_force_and_that_is_said() {
    let bed = ConfigMapTestbed::new();
    bed.apply(&["v1"], &[]);
    let mut sidecar = bed.start(&[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    bed.api.delete(CONFIGMAP_NAME);
    wait_for_config_error(&mut sidecar, "ConfigMap default/adapters does not exist");
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
    bed.apply(&["v1", "v2"], &[]);
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn the_mount_holds_until_the_api_has_spoken_and_not_after() {
    let mut bed = ConfigMapTestbed::new();
    bed.update_mount(&["mounted"]);
    bed.api.set_forbidden(true);
    let mut sidecar = bed.start(&[]);
    sidecar.wait_for_state("mounted", AdapterState::Verified);
    let said = wait_for_config_error(&mut sidecar, "it is forbidden to list configmaps/adapters in namespace default");
    assert!(said.contains("until then the mounted file"), "{said}");
    bed.update_mount(&["mounted", "again"]);
    sidecar.wait_for_state("again", AdapterState::Verified);
    bed.api.set_forbidden(false);
    wait_for_config_error(&mut sidecar, "ConfigMap default/adapters does not exist");
    // What the API says first is not good: the mount stays.
    bed.api.apply(CONFIGMAP_NAME, &[("adapters.yaml", "wrong key")]);
    let said = wait_for_config_error(&mut sidecar, "has no text under `configmap.yaml` and holds `adapters.yaml`");
    assert!(said.contains("--configmap-key"), "{said}");
    bed.apply(&["v1"], &[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
    let hash = sidecar.status().config.hash;
    bed.update_mount(&["mounted", "late"]);
    bed.apply(&["v1", "v2"], &[]);
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_ne!(sidecar.status().config.hash, hash);
    assert_eq!(sidecar.adapter_state("late"), None, "the mount is older than what the API says");
}

#[test]
fn an_api_server_that_takes_connections_and_says_nothing_is_not_waited_for() {
    let mut bed = ConfigMapTestbed::new();
    bed.update_mount(&["mounted"]);
    bed.apply(&["v1"], &[]);
    bed.api.mute_verb("list");
    let mut sidecar = bed.start(&[]);
    sidecar.wait_for_state("mounted", AdapterState::Verified);
    wait_for_config_error(&mut sidecar, "did not respond");
    bed.api.unmute();
    sidecar.wait_for_state("v1", AdapterState::Verified);
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let bed = ConfigMapTestbed::new();
    bed.apply(&["v1"], &[]);
    let mut sidecar = bed.start(&[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    bed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", "vLLMLoRAConfig: [")]);
    wait_for_config_error(&mut sidecar, "ConfigMap default/adapters, key configmap.yaml");
    let good = bed.file_text(&["v1"], &[]);
    bed.api.apply(CONFIGMAP_NAME, &[("configmap.yaml", &good), (DIRECTIVES_KEY, "serving: 1")]);
    wait_for_config_error(&mut sidecar, "rollora.yaml beside ConfigMap default/adapters");
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
}

#[test]
fn the_key_of_the_configmap_can_be_named() {
    let bed = ConfigMapTestbed::new();
    bed.api.apply(CONFIGMAP_NAME, &[("adapters.yaml", &bed.file_text(&["v1"], &[]))]);
    let mut sidecar = bed.start(&["--configmap-key", "adapters.yaml"]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
}

/// An adapter that was used a moment ago and is unlisted: it waits for the end of its grace.
fn retiring(bed: &ConfigMapTestbed) -> SidecarProgram {
    bed.apply(&["v1"], &[]);
    let mut sidecar = bed.start(&["--unload-grace", "2s"]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    bed.vllm.mark_used("v1");
    bed.apply(&[], &["v1"]);
    sidecar.wait_for_state("v1", AdapterState::Unloading);
    sidecar.wait_for("the grace", |sidecar| sidecar.status().adapters.iter().find_map(|adapter| adapter.last_used));
    sidecar
}

#[test]
fn before_an_unload_the_api_is_asked_itself() {
    let bed = ConfigMapTestbed::new();
    let mut sidecar = retiring(&bed);
    bed.api.mute_verb("watch");
    bed.apply(&["v1"], &[]);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    assert_eq!(bed.vllm.count_requests("unload v1"), 0, "somebody put it back, and only a read could tell");
    assert!(bed.api.requests().contains(&"get default/adapters".to_owned()));
    assert_eq!(sidecar.status().config.error, None, "it answers, and nothing is wrong");
    assert!(!sidecar.has_logged("has not answered yet"));
}

#[test]
fn an_api_server_that_does_not_answer_does_not_keep_an_adapter_for_ever() {
    let bed = ConfigMapTestbed::new();
    let mut sidecar = retiring(&bed);
    bed.api.mute_verb("get");
    sidecar.wait_for_state("v1", AdapterState::Gone);
    assert_eq!(bed.vllm.count_requests("unload v1"), 1);
}
