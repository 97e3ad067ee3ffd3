//! How soon a change of the file is acted on, however it comes about. The limits are those of a busy machine that runs
//! other tests beside; what it takes on a quiet one is measured by the benchmark.

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

/// A tenth of a second, times what a busy machine takes; far from the second after which it would be looked for.
const REACTION_LIMIT: Duration = Duration::from_millis(300);

/// Changes the file in the folder to this text.
type ChangeFile<'a> = &'a mut dyn FnMut(&Path, &str);

/// The median of five changes: from the change to the load that it asks for.
fn median_reaction(vllm: &FakeVllm, sidecar: &mut SidecarProgram, folder: &Path, change: ChangeFile<'_>) -> Duration {
    let round = vllm.requests().len();
    let mut times: Vec<_> = (0..5)
        .map(|number| {
            let id = format!("v{round}-{number}");
            let load = format!("load {id} /adapters/{id}");
            let text = adapters_file(vllm.port(), &[&id], &[]);
            let changed = Instant::now();
            change(folder, &text);
            sidecar.wait_for(&load, |_| (vllm.count_requests(&load) == 1).then_some(()));
            changed.elapsed()
        })
        .collect();
    times.sort();
    times[2]
}

#[test]
fn each_way_in_which_a_file_changes_is_acted_on_at_once() {
    let (vllm, folder) = (FakeVllm::start(FakeVllmConfig::default()), TempDir::new().unwrap());
    let file = |folder: &Path| folder.join("configmap.yaml");
    fs::write(file(folder.path()), adapters_file(vllm.port(), &["v1"], &[])).unwrap();
    let mut sidecar = SidecarCommand::new().path("--config", &file(folder.path())).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let ways: [(&str, ChangeFile<'_>); 3] = [
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
    for (name, change) in ways {
        let took = median_reaction(&vllm, &mut sidecar, folder.path(), change);
        assert!(took < REACTION_LIMIT, "{name}: {took:?}");
    }
}

#[test]
fn a_swap_by_the_kubelet_is_acted_on_at_once() {
    let (vllm, mut mount) = (FakeVllm::start(FakeVllmConfig::default()), ConfigMapMount::new());
    mount.update(&adapters_file(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = SidecarProgram::start_with_mount(&mount);
    sidecar.wait_for_state("v1", AdapterState::Verified);
    let took = median_reaction(&vllm, &mut sidecar, Path::new(""), &mut |_, text| mount.update(text, None));
    assert!(took < REACTION_LIMIT, "{took:?}");
}

#[test]
fn a_file_that_is_gone_takes_nothing_away_and_is_taken_when_it_returns() {
    let (vllm, folder) = (FakeVllm::start(FakeVllmConfig::default()), TempDir::new().unwrap());
    let file: PathBuf = folder.path().join("configmap.yaml");
    fs::write(&file, adapters_file(vllm.port(), &["v1"], &[])).unwrap();
    let mut sidecar = SidecarCommand::new().path("--config", &file).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    sidecar.wait_until_ready();
    fs::remove_file(&file).unwrap();
    sidecar
        .wait_for("it is said", |sidecar| sidecar.status().config.error.filter(|said| said.contains("no such file")));
    assert!(sidecar.readiness().0);
    assert_eq!((sidecar.adapter_state("v1"), vllm.adapters()), (Some(AdapterState::Verified), vec!["v1".to_owned()]));
    fs::write(&file, adapters_file(vllm.port(), &["v1", "v2"], &[])).unwrap();
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn where_nobody_tells_of_changes_they_are_found_by_looking() {
    // The file is a link to a folder that is not watched, as on a file system without notifications.
    let (vllm, folder, elsewhere) =
        (FakeVllm::start(FakeVllmConfig::default()), TempDir::new().unwrap(), TempDir::new().unwrap());
    let (link, target) = (folder.path().join("configmap.yaml"), elsewhere.path().join("target"));
    fs::write(&target, adapters_file(vllm.port(), &["v1"], &[])).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let mut sidecar = SidecarCommand::new().path("--config", &link).start();
    sidecar.wait_for_state("v1", AdapterState::Verified);
    fs::write(&target, adapters_file(vllm.port(), &["v1", "v2"], &[])).unwrap();
    let changed = Instant::now();
    sidecar.wait_for_state("v2", AdapterState::Verified);
    assert!(changed.elapsed() < Duration::from_secs(5), "it took {:?}", changed.elapsed());
}
