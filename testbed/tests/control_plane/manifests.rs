//! The API server accepts everything that `kubectl apply -k` applies, with strict validation of fields.

use super::on_shared_control_plane;
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::control_plane::ControlPlane;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

/// Returns the folders at or below `folder` that contain a kustomization.
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

/// Runs `kubectl` and returns its output; a non-zero exit code is an error.
fn run_kubectl(plane: &ControlPlane, arguments: &[&str]) -> Result<String> {
    let output = plane.kubectl()?.args(arguments).stdin(Stdio::null()).output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "kubectl {}: {out}{err}", arguments.join(" "));
    Ok(out.into_owned())
}

#[test]
fn api_server_accepts_all_manifests_strictly() -> Result<()> {
    on_shared_control_plane(async |plane, _| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folders =
            [find_kustomizations(&root.join("manifests"))?, find_kustomizations(&root.join("crds"))?].concat();
        ensure!(folders.len() > 3, "{folders:?}");
        let mut namespaces = BTreeSet::from(["default".to_owned()]);
        for folder in &folders {
            let folder = folder.to_str().context("the path is not UTF-8")?;
            let text = run_kubectl(plane, &["kustomize", folder])?;
            // A dry run does not create the namespaces that later objects need.
            let named = text.lines().filter_map(|line| line.strip_prefix("  namespace: "));
            for namespace in named.filter(|namespace| namespaces.insert((*namespace).to_owned())) {
                run_kubectl(plane, &["create", "namespace", namespace])?;
            }
            let applied = run_kubectl(plane, &["apply", "--dry-run=server", "--validate=strict", "-k", folder])?;
            ensure!(
                applied.lines().count() == text.matches("\nkind: ").count(),
                "{folder}: kubectl applied\n{applied}\nof\n{text}"
            );
        }
        Ok(())
    })
}
