//! Everything that `kubectl apply -k` is told to apply is what the API server takes, to the last field.

use super::on_shared_control_plane;
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::control_plane::ControlPlane;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

/// The folders below with a kustomization, which is what somebody applies.
fn find_kustomizations(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if folder.join("kustomization.yaml").is_file() {
        found.push(folder.to_owned());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(find_kustomizations(&path)?);
        }
    }
    Ok(found)
}

/// What `kubectl` says, which has to go well.
fn run_kubectl(plane: &ControlPlane, arguments: &[&str]) -> Result<String> {
    let output = plane.kubectl()?.args(arguments).stdin(Stdio::null()).output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "kubectl {}: {out}{err}", arguments.join(" "));
    Ok(out.into_owned())
}

#[test]
fn the_api_server_takes_every_manifest_and_knows_every_field_of_it() -> Result<()> {
    on_shared_control_plane(async |plane, _| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folders =
            [find_kustomizations(&root.join("manifests"))?, find_kustomizations(&root.join("crds"))?].concat();
        ensure!(folders.len() > 3, "{folders:?}");
        let mut namespaces = BTreeSet::from(["default".to_owned()]);
        for folder in &folders {
            let folder = folder.to_str().context("a path that is not text")?;
            let text = run_kubectl(plane, &["kustomize", folder])?;
            // What is only tried is not there for what comes after it.
            let named = text.lines().filter_map(|line| line.strip_prefix("  namespace: "));
            for namespace in named.filter(|namespace| namespaces.insert((*namespace).to_owned())) {
                run_kubectl(plane, &["create", "namespace", namespace])?;
            }
            let said = run_kubectl(plane, &["apply", "--dry-run=server", "--validate=strict", "-k", folder])?;
            ensure!(said.lines().count() == text.matches("\nkind: ").count(), "{folder}: {said}\nof\n{text}");
        }
        Ok(())
    })
}
