//! The manifests that are shipped, rendered by `kubectl kustomize` as users do: an overlay that sets the namespace.

use super::control_plane::ControlPlane;
use anyhow::{Context as _, Result, bail, ensure};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// The folder of the repository that holds the manifests.
pub fn manifests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// Objects in the order in which they are applied.
#[derive(Debug, Clone)]
pub struct Manifests {
    /// Each as it is written.
    pub objects: Vec<Value>,
}

impl Manifests {
    /// What these folders below [`folder`] say, in this namespace. `scratch` is a folder for the overlay.
    pub fn render(plane: &ControlPlane, folders: &[&str], namespace: &str, scratch: &Path) -> Result<Self> {
        let overlay = scratch.join("overlay");
        fs::create_dir_all(&overlay)?;
        let overlay = overlay.canonicalize()?;
        let root = manifests_dir().canonicalize().context("the repository has no manifests")?;
        let folders: Vec<_> = folders.iter().map(|name| relative(&overlay, &root.join(name))).collect();
        let kustomization = serde_json::json!({ "namespace": namespace, "resources": folders });
        fs::write(overlay.join("kustomization.yaml"), kustomization.to_string())?;
        let output = plane.kubectl()?.arg("kustomize").arg(&overlay).output()?;
        ensure!(output.status.success(), "kubectl kustomize: {}", String::from_utf8_lossy(&output.stderr));
        Self::parse(std::str::from_utf8(&output.stdout)?)
    }

    /// Documents of YAML.
    pub fn parse(text: &str) -> Result<Self> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(text).context("manifests that cannot be read")?;
        Ok(Self { objects: objects.into_iter().filter(|object| !object.is_null()).collect() })
    }

    /// One object, to be changed as an overlay's patch would.
    pub fn object_mut(&mut self, kind: &str, name: &str) -> Result<&mut Value> {
        let found = self.objects.iter_mut().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
        found.with_context(|| format!("the manifests have no {kind} {name}"))
    }

    /// Applies all.
    pub async fn apply(&self, client: &Client) -> Result<()> {
        // What others name comes first; then nothing waits for anything.
        let is_first = |object: &&Value| object["kind"] == "Namespace";
        for object in self.objects.iter().filter(is_first) {
            apply(client, object).await?;
        }
        let rest = self.objects.iter().filter(|object| !is_first(object));
        futures_util::future::try_join_all(rest.map(|object| apply(client, object))).await.map(drop)
    }
}

/// Applies one object, as `kubectl apply --server-side` does.
pub async fn apply(client: &Client, object: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (name, namespace) = (text(&object["metadata"]["name"]), text(&object["metadata"]["namespace"]));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    if kind.is_empty() || name.is_empty() {
        bail!("an object without kind or name: {object}");
    }
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &namespace, &resource)
    };
    let applied = api.patch(&name, &PatchParams::apply("bed").force(), &Patch::Apply(object)).await;
    applied.map(drop).with_context(|| format!("cannot apply {kind} {name}"))
}

/// The way from one folder to another; kustomize takes no absolute ones.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}

/// Adds to a list that may not be there yet.
pub fn push_value(list: &mut Value, value: Value) -> Result<()> {
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().context("not a list")?.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_from_one_folder_to_another() {
        for (from, to, expected) in [
            ("/tmp/bed/overlay", "/srv/manifests/vllm", "../../../srv/manifests/vllm"),
            ("/srv/a", "/srv/b/c", "../b/c"),
            ("/srv", "/srv/b", "b"),
        ] {
            assert_eq!(relative(Path::new(from), Path::new(to)), Path::new(expected));
        }
    }
}
