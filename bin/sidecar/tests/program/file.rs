//! Fed by a mount.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, ProgramTestbed, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::{adapters::content_hash, sidecar_status::AdapterState};

#[test]
fn another_version_of_the_mount_is_taken_at_once_with_the_hash_that_the_operator_computes() {
    let mut bed = ProgramTestbed::with_verified(&["v1"]);
    let key = "managed: [\"v*\"]\nadmitted: [v1, v2]\nserving: [v1]\n";
    bed.update_file(&["v1", "v2"], &[], Some(key));
    bed.sidecar.wait_for_state("v2", AdapterState::Verified);
    let config = bed.sidecar.status().config;
    let user = adapters_file(bed.vllm.port(), &["v1", "v2"], &[]);
    assert_eq!(config.hash, Some(content_hash(&user, Some(key))));
    assert!(config.operator_directives);
    // Unlisted while it serves: held. Unlisted and idle: gone.
    bed.update_file(&["v2"], &["v1"], Some(key));
    bed.sidecar.wait_for_state("v1", AdapterState::UnloadHeld);
    bed.update_file(&["v2"], &["v1"], Some("managed: [\"v*\"]\nadmitted: [v1, v2]\nserving: [v2]\n"));
    bed.sidecar.wait_for_state("v1", AdapterState::Gone);
    assert_eq!((bed.vllm.adapters(), bed.vllm.count_requests("unload v1")), (vec!["v2".to_owned()], 1));
}

#[test]
fn a_bad_file_changes_nothing_and_the_status_says_what_is_wrong() {
    let mut bed = ProgramTestbed::with_verified(&["v1"]);
    let before = bed.sidecar.status().config.hash;
    for (bad, words) in [
        ("vLLMLoRAConfig: [", "configmap.yaml"),
        ("vLLMLoRAConfig:\n  host: http://vllm\n", "the host `http://vllm` cannot be vLLM's"),
    ] {
        bed.mount.update(bad, None);
        let error =
            bed.sidecar.wait_for(words, |sidecar| sidecar.status().config.error.filter(|said| said.contains(words)));
        assert!(error.contains("configmap.yaml"), "{error}");
        assert_eq!(bed.sidecar.status().config.hash, before);
    }
    assert!(bed.sidecar.readiness().0, "what is loaded goes on serving");
    let (_, metrics) = bed.sidecar.get("/metrics");
    assert!(metrics.contains("rollora_sidecar_config_error 1"), "{metrics}");
    bed.update_file(&["v1", "v2"], &[], None);
    bed.sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(bed.sidecar.status().config.error, None);
}

#[test]
fn a_key_that_vanishes_lets_nothing_in_and_takes_nothing_away() {
    let mut bed = ProgramTestbed::with_verified(&["v1"]);
    let key = "managed: [\"v*\"]\nadmitted: [v1]\nserving: [v1]\nrejected: [deadly]\n";
    bed.update_file(&["deadly"], &["v1"], Some(key));
    bed.sidecar.wait_for_state("v1", AdapterState::UnloadHeld);
    let before = bed.sidecar.status().config.hash;
    bed.update_file(&["deadly"], &["v1"], None);
    let words = "`rollora.yaml` has vanished";
    bed.sidecar.wait_for(words, |sidecar| sidecar.status().config.error.filter(|said| said.contains(words)));
    let config = bed.sidecar.status().config;
    assert_eq!((config.hash, config.operator_directives), (before, true));
    assert_eq!(bed.sidecar.adapter_state("v1"), Some(AdapterState::UnloadHeld));
    assert_eq!(bed.vllm.count_requests("load deadly /adapters/deadly"), 0);
    bed.update_file(&["v1", "v2"], &[], Some("managed: []\n"));
    bed.sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(bed.sidecar.status().config.error, None);
}

#[test]
fn another_port_in_the_file_is_another_server() {
    let mut bed = ProgramTestbed::with_verified(&["v1"]);
    let other = FakeVllm::start(FakeVllmConfig::default());
    bed.mount.update(&adapters_file(other.port(), &["v1"], &[]), None);
    bed.sidecar.wait_for("the other server", |sidecar| {
        let server = sidecar.status().server?;
        (server.endpoint == other.url() && sidecar.adapter_state("v1") == Some(AdapterState::Verified)).then_some(())
    });
    bed.sidecar.wait_until_ready();
    assert_eq!((other.adapters(), bed.vllm.adapters()), (vec!["v1".to_owned()], vec!["v1".to_owned()]));
}

#[test]
fn the_host_of_the_command_line_goes_over_the_one_of_the_file() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]).replace("127.0.0.1", "nowhere.invalid"), None);
    let mut sidecar =
        SidecarCommand::new().path("--config", &mount.file()).env("ROLLORA_VLLM_HOST", "127.0.0.1").start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
}

#[test]
fn the_key_for_vllm_comes_from_the_environment_or_a_file_that_may_change() {
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
    sidecar.wait_for("the refusal", |sidecar| sidecar.status().problem.filter(|said| said.reason == "Unauthorized"));
    std::fs::write(&key, "first\n").unwrap();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    // An empty file is no key: the last good one stays.
    std::fs::write(&key, "").unwrap();
    sidecar.wait_for("it is said", |sidecar| {
        sidecar.has_logged("vLLM's API key cannot be taken, the last good one stays").then_some(())
    });
    assert_eq!(sidecar.adapter_state("v1"), Some(AdapterState::Verified));
    assert!(!sidecar.has_logged("first") && !sidecar.has_logged("wrong"), "no log tells a key");
}

#[test]
fn a_key_that_a_kubelet_swaps_is_taken_and_takes_nothing_back() {
    let vllm = FakeVllm::start(FakeVllmConfig { api_key: Some("first".to_owned()), ..FakeVllmConfig::default() });
    let (mut mount, secret) = (ConfigMapMount::new(), tempfile::tempdir().unwrap());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    // A Secret in its mount: the file is a link through a folder that is swapped as a whole.
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
    let asked = vllm.requests();
    // The key rises for both at the same moment: vLLM goes on with what it holds.
    vllm.configure(|knobs| knobs.api_key = Some("second".to_owned()));
    project("..version_2", "second");
    sidecar.wait_for("it is read", |sidecar| {
        assert!(sidecar.readiness().0);
        sidecar.has_logged("vLLM's API key was read again").then_some(())
    });
    mount.update(&adapters_file(vllm.port(), &["v1", "v2"], &[]), None);
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(vllm.requests()[asked.len()..], ["load v2 /adapters/v2", "use v2"], "v1 was left alone");
}

#[test]
fn without_a_file_it_waits_and_says_what_for() {
    let mut mount = ConfigMapMount::new();
    let vllm = FakeVllm::start(FakeVllmConfig::default());
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    sidecar
        .wait_for("it is said", |sidecar| sidecar.status().config.error.filter(|said| said.contains("no such file")));
    assert!(!sidecar.readiness().0);
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
}
