//! Tests with the adapters file from a mounted ConfigMap.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, ProgramTestbed, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::{adapters::content_hash, sidecar_status::AdapterState};

#[test]
fn new_version_of_the_mount_is_applied_with_the_operators_hash() {
    let mut testbed = ProgramTestbed::with_verified(&["v1"]);
    let directives = "managed: [\"v*\"]\nadmitted: [v1, v2]\nserving: [v1]\n";
    testbed.update_file(&["v1", "v2"], &[], Some(directives));
    testbed.sidecar.wait_for_state("v2", AdapterState::Verified);
    let config = testbed.sidecar.status().config;
    let user = adapters_file(testbed.vllm.port(), &["v1", "v2"], &[]);
    assert_eq!(config.hash, Some(content_hash(&user, Some(directives))));
    assert!(config.operator_directives);
    // Unlisted while serving: kept. Unlisted and idle: unloaded.
    testbed.update_file(&["v2"], &["v1"], Some(directives));
    testbed.sidecar.wait_for_state("v1", AdapterState::UnloadHeld);
    testbed.update_file(&["v2"], &["v1"], Some("managed: [\"v*\"]\nadmitted: [v1, v2]\nserving: [v2]\n"));
    testbed.sidecar.wait_for_state("v1", AdapterState::Gone);
    assert_eq!((testbed.vllm.adapters(), testbed.vllm.count_requests("unload v1")), (vec!["v2".to_owned()], 1));
}

#[test]
fn invalid_file_changes_nothing_and_is_reported() {
    let mut testbed = ProgramTestbed::with_verified(&["v1"]);
    let before = testbed.sidecar.status().config.hash;
    for (bad, text) in [
        ("vLLMLoRAConfig: [", "configmap.yaml"),
        ("vLLMLoRAConfig:\n  host: http://vllm\n", "the host `http://vllm` is not valid"),
    ] {
        testbed.mount.update(bad, None);
        let error = testbed
            .sidecar
            .wait_for(text, |sidecar| sidecar.status().config.error.filter(|error| error.contains(text)));
        assert!(error.contains("configmap.yaml"), "{error}");
        assert_eq!(testbed.sidecar.status().config.hash, before);
    }
    assert!(testbed.sidecar.readiness().0, "loaded adapters must keep serving");
    let (_, metrics) = testbed.sidecar.get("/metrics");
    assert!(metrics.contains("rollora_sidecar_config_error 1"), "{metrics}");
    testbed.update_file(&["v1", "v2"], &[], None);
    testbed.sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(testbed.sidecar.status().config.error, None);
}

#[test]
fn vanished_directives_neither_admit_nor_unload() {
    let mut testbed = ProgramTestbed::with_verified(&["v1"]);
    let directives = "managed: [\"v*\"]\nadmitted: [v1]\nserving: [v1]\nrejected: [deadly]\n";
    testbed.update_file(&["deadly"], &["v1"], Some(directives));
    testbed.sidecar.wait_for_state("v1", AdapterState::UnloadHeld);
    let before = testbed.sidecar.status().config.hash;
    testbed.update_file(&["deadly"], &["v1"], None);
    let text = "`rollora.yaml` has vanished";
    testbed.sidecar.wait_for(text, |sidecar| sidecar.status().config.error.filter(|error| error.contains(text)));
    let config = testbed.sidecar.status().config;
    assert_eq!((config.hash, config.operator_directives), (before, true));
    assert_eq!(testbed.sidecar.adapter_state("v1"), Some(AdapterState::UnloadHeld));
    assert_eq!(testbed.vllm.count_requests("load deadly /adapters/deadly"), 0);
    testbed.update_file(&["v1", "v2"], &[], Some("managed: []\n"));
    testbed.sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(testbed.sidecar.status().config.error, None);
}

#[test]
fn new_port_in_the_file_switches_the_server() {
    let mut testbed = ProgramTestbed::with_verified(&["v1"]);
    let other = FakeVllm::start(FakeVllmConfig::default());
    testbed.mount.update(&adapters_file(other.port(), &["v1"], &[]), None);
    testbed.sidecar.wait_for("the other server", |sidecar| {
        let server = sidecar.status().server?;
        (server.endpoint == other.url() && sidecar.adapter_state("v1") == Some(AdapterState::Verified)).then_some(())
    });
    testbed.sidecar.wait_until_ready();
    assert_eq!((other.adapters(), testbed.vllm.adapters()), (vec!["v1".to_owned()], vec!["v1".to_owned()]));
}

#[test]
fn host_flag_overrides_the_host_of_the_file() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]).replace("127.0.0.1", "nowhere.invalid"), None);
    let mut sidecar =
        SidecarCommand::new().path("--config", &mount.file()).env("ROLLORA_VLLM_HOST", "127.0.0.1").start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
}

#[test]
fn api_key_comes_from_the_environment_or_a_watched_file() {
    let vllm = FakeVllm::start(FakeVllmConfig { api_key: Some("first".to_owned()), ..FakeVllmConfig::default() });
    let mut mount = ConfigMapMount::new();
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).env("VLLM_API_KEY", "first").start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    drop(sidecar);

    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "wrong\n").unwrap();
    let mut sidecar = SidecarCommand::new().path("--config", &mount.file()).path("--api-key-file", &key).start();
    sidecar
        .wait_for("the refusal", |sidecar| sidecar.status().problem.filter(|problem| problem.reason == "Unauthorized"));
    std::fs::write(&key, "first\n").unwrap();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    // An empty file holds no key: the last good one is kept.
    std::fs::write(&key, "").unwrap();
    sidecar.wait_for("the warning", |sidecar| {
        sidecar.has_logged("vLLM's API key cannot be reloaded, keeping the last good one").then_some(())
    });
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
    assert!(!sidecar.has_logged("first") && !sidecar.has_logged("wrong"), "no log line may contain a key");
}

#[test]
fn api_key_swapped_by_a_kubelet_is_reloaded_without_effects() {
    let vllm = FakeVllm::start(FakeVllmConfig { api_key: Some("first".to_owned()), ..FakeVllmConfig::default() });
    let (mut mount, secret) = (ConfigMapMount::new(), tempfile::tempdir().unwrap());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    // A mounted Secret: the file is a link through a folder that is swapped as a whole.
    let link = |target: &str, name: &str| {
        let fresh = secret.path().join("..fresh");
        std::os::unix::fs::symlink(target, &fresh).unwrap();
        std::fs::rename(&fresh, secret.path().join(name)).unwrap();
    };
    let project = |version: &str, key: &str| {
        std::fs::create_dir(secret.path().join(version)).unwrap();
        std::fs::write(secret.path().join(version).join("key"), key).unwrap();
        link(version, "..data");
    };
    project("..version_1", "first");
    link("..data/key", "key");
    let start =
        SidecarCommand::new().path("--config", &mount.file()).path("--api-key-file", &secret.path().join("key"));
    let mut sidecar = start.start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    let requests = vllm.requests();
    // The key changes for both at the same time: vLLM keeps its adapters.
    vllm.configure(|config| config.api_key = Some("second".to_owned()));
    project("..version_2", "second");
    sidecar.wait_for("the reload", |sidecar| {
        assert!(sidecar.readiness().0);
        sidecar.has_logged("vLLM's API key was reloaded").then_some(())
    });
    mount.update(&adapters_file(vllm.port(), &["v1", "v2"], &[]), None);
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(vllm.requests()[requests.len()..], ["load v2 /adapters/v2", "use v2"], "v1 must be left alone");
}

#[test]
fn missing_file_is_reported_and_waited_for() {
    let mut mount = ConfigMapMount::new();
    let vllm = FakeVllm::start(FakeVllmConfig::default());
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    sidecar
        .wait_for("the error", |sidecar| sidecar.status().config.error.filter(|error| error.contains("no such file")));
    assert!(!sidecar.readiness().0);
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
}
