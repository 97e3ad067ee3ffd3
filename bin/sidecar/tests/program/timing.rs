//! How soon a change of the file is acted on, however it comes about. The limits are those of a busy machine that runs
//! other tests beside; what it takes on a quiet one is measured by the benchmark.

use crate::{
    bed::{Mount, Program, Start, adapters},
    fake::{Fake, Knobs},
};
use rollora_api::sidecar_status::AdapterState;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A tenth of a second, times what a busy machine takes; far from the second after which it would be looked for.
const SOON: Duration = Duration::from_millis(300);

/// Changes the file in the folder to this text.
type Change<'a> = &'a mut dyn FnMut(&Path, &str);

/// The median of five changes: from the change to the load that it asks for.
fn reaction(vllm: &Fake, sidecar: &mut Program, folder: &Path, change: Change<'_>) -> Duration {
    let round = vllm.log().len();
    let mut times: Vec<_> = (0..5)
        .map(|number| {
            let id = format!("v{round}-{number}");
            let load = format!("load {id} /adapters/{id}");
            let text = adapters(vllm.port(), &[&id], &[]);
            let changed = Instant::now();
            change(folder, &text);
            sidecar.until(&load, |_| (vllm.count(&load) == 1).then_some(()));
            changed.elapsed()
        })
        .collect();
    times.sort();
    times[2]
}

#[test]
fn each_way_in_which_a_file_changes_is_acted_on_at_once() {
    let (vllm, folder) = (Fake::start(Knobs::default()), TempDir::new().unwrap());
    let file = |folder: &Path| folder.join("configmap.yaml");
    fs::write(file(folder.path()), adapters(vllm.port(), &["v1"], &[])).unwrap();
    let mut sidecar = Start::new().path("--config", &file(folder.path())).start();
    sidecar.until_state("v1", AdapterState::Verified);
    let ways: [(&str, Change<'_>); 3] = [
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
        let took = reaction(&vllm, &mut sidecar, folder.path(), change);
        assert!(took < SOON, "{name}: {took:?}");
    }
}

#[test]
fn a_swap_by_the_kubelet_is_acted_on_at_once() {
    let (vllm, mut mount) = (Fake::start(Knobs::default()), Mount::new());
    mount.swap(&adapters(vllm.port(), &["v1"], &[]), None);
    let mut sidecar = Program::beside(&mount);
    sidecar.until_state("v1", AdapterState::Verified);
    let took = reaction(&vllm, &mut sidecar, Path::new(""), &mut |_, text| mount.swap(text, None));
    assert!(took < SOON, "{took:?}");
}

#[test]
fn a_file_that_is_gone_takes_nothing_away_and_is_taken_when_it_returns() {
    let (vllm, folder) = (Fake::start(Knobs::default()), TempDir::new().unwrap());
    let file: PathBuf = folder.path().join("configmap.yaml");
    fs::write(&file, adapters(vllm.port(), &["v1"], &[])).unwrap();
    let mut sidecar = Start::new().path("--config", &file).start();
    sidecar.until_state("v1", AdapterState::Verified);
    sidecar.until_ready();
    fs::remove_file(&file).unwrap();
    sidecar.until("it is said", |sidecar| sidecar.status().config.error.filter(|said| said.contains("no such file")));
    assert!(sidecar.ready().0);
    assert_eq!((sidecar.state("v1"), vllm.adapters()), (Some(AdapterState::Verified), vec!["v1".to_owned()]));
    fs::write(&file, adapters(vllm.port(), &["v1", "v2"], &[])).unwrap();
    sidecar.until_state("v2", AdapterState::Verified);
    assert_eq!(sidecar.status().config.error, None);
}

#[test]
fn where_nobody_tells_of_changes_they_are_found_by_looking() {
    // The file is a link to a folder that is not watched, as on a file system without notifications.
    let (vllm, folder, elsewhere) = (Fake::start(Knobs::default()), TempDir::new().unwrap(), TempDir::new().unwrap());
    let (link, target) = (folder.path().join("configmap.yaml"), elsewhere.path().join("target"));
    fs::write(&target, adapters(vllm.port(), &["v1"], &[])).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let mut sidecar = Start::new().path("--config", &link).start();
    sidecar.until_state("v1", AdapterState::Verified);
    fs::write(&target, adapters(vllm.port(), &["v1", "v2"], &[])).unwrap();
    let changed = Instant::now();
    sidecar.until_state("v2", AdapterState::Verified);
    assert!(changed.elapsed() < Duration::from_secs(5), "it took {:?}", changed.elapsed());
}
