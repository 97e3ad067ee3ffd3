//! Tests of the reaction time to every kind of file change. The limits allow for a busy machine that runs other tests
//! at the same time; the benchmark measures a quiet one.

use crate::{
    fake::{FakeVllm, FakeVllmConfig},
    testbed::{ConfigMapMount, SidecarCommand, SidecarProgram, adapters_file},
};
use rollora_api::sidecar_status::AdapterState;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A tenth of a second times three for a busy machine; far below the poll interval of one second.
const REACTION_LIMIT: Duration = Duration::from_millis(300);

/// Writes this text to the file in the folder.
type ChangeFile<'a> = &'a mut dyn FnMut(&Path, &str);

/// Returns the median time from a change to the resulting load, of five changes.
fn median_reaction(vllm: &FakeVllm, sidecar: &mut SidecarProgram, folder: &Path, change: ChangeFile<'_>) -> Duration {
    let round = vllm.requests().len();
    let mut times: Vec<_> = (0..5)
        .map(|number| {
            let id = format!("v{round}-{number}");
            let load = format!("load {id} /adapters/{id}");
            let text = adapters_file(vllm.port(), &[&id], &[]);
            let changed_at = Instant::now();
            change(folder, &text);
            sidecar.wait_for(&load, |_| (vllm.count_requests(&load) == 1).then_some(()));
            changed_at.elapsed()
        })
        .collect();
    times.sort();
    times[2]
}

#[test]
fn every_kind_of_file_change_is_applied_quickly() {
    let (vllm, folder) = (FakeVllm::start(FakeVllmConfig::default()), TempDir::new().unwrap());
    let file = |folder: &Path| folder.join("configmap.yaml");
    fs::write(file(folder.path()), adapters_file(vllm.port(), &["v1"], &[])).unwrap();
    let mut sidecar = SidecarCommand::new().path("--config", &file(folder.path())).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let changes: [(&str, ChangeFile<'_>); 3] = [
        ("overwritten", &mut |folder, text| fs::write(file(folder), text).unwrap()),
        ("renamed into place", &mut |folder, text| {
            fs::write(folder.join("fresh"), text).unwrap();
            fs::rename(folder.join("fresh"), file(folder)).unwrap();
        }),
        ("deleted and put back", &mut |folder, text| {
            fs::remove_file(file(folder)).unwrap();
            fs::write(file(folder), text).unwrap();
        }),
    ];
    for (name, change) in changes {
        let duration = median_reaction(&vllm, &mut sidecar, folder.path(), change);
        assert!(duration < REACTION_LIMIT, "{name}: {duration:?}");
    }
}

#[test]
fn swap_by_a_kubelet_is_applied_quickly() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let duration = median_reaction(&vllm, &mut sidecar, Path::new(""), &mut |_, text| mount.update(text, None));
    assert!(duration < REACTION_LIMIT, "{duration:?}");
}

#[test]
fn missing_file_keeps_adapters_until_it_returns() {
    let (vllm, folder) = (FakeVllm::start(FakeVllmConfig::default()), TempDir::new().unwrap());
    let file: PathBuf = folder.path().join("configmap.yaml");
    fs::write(&file, adapters_file(vllm.port(), &["v1"], &[])).unwrap();
    let mut sidecar = SidecarCommand::new().path("--config", &file).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    fs::remove_file(&file).unwrap();
    sidecar
        .wait_for("the error", |sidecar| sidecar.status().config.error.filter(|error| error.contains("no such file")));
    assert!(sidecar.readiness().0);
    assert_eq!((sidecar.adapter_state("v1"), vllm.adapters()), (Some(AdapterState::Verified), vec!["v1".to_owned()]));
    fs::write(&file, adapters_file(vllm.port(), &["v1", "v2"], &[])).unwrap();
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn change_without_notification_is_found_by_polling() {
    // The file is a link to a folder that is not watched, as on a file system without notifications.
    let (vllm, folder, elsewhere) =
        (FakeVllm::start(FakeVllmConfig::default()), TempDir::new().unwrap(), TempDir::new().unwrap());
    let (link, target) = (folder.path().join("configmap.yaml"), elsewhere.path().join("target"));
    fs::write(&target, adapters_file(vllm.port(), &["v1"], &[])).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let mut sidecar = SidecarCommand::new().path("--config", &link).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    fs::write(&target, adapters_file(vllm.port(), &["v1", "v2"], &[])).unwrap();
    let changed_at = Instant::now();
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert!(changed_at.elapsed() < Duration::from_secs(5), "it took {:?}", changed_at.elapsed());
}
