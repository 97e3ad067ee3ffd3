//! The shipped manifests, rendered by `kubectl kustomize` as users do, with an overlay that sets the namespace.

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

/// Returns the repository's folder of manifests.
pub fn manifests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// Kubernetes objects, in the order in which they were rendered.
#[derive(Debug, Clone)]
pub struct Manifests {
    /// Objects as JSON, not validated.
    pub objects: Vec<Value>,
}

impl Manifests {
    /// Renders these folders below [`manifests_dir`] in `namespace`. `scratch` is a folder for the overlay.
    pub fn render(plane: &ControlPlane, folders: &[&str], namespace: &str, scratch: &Path) -> Result<Self> {
        let overlay = scratch.join("overlay");
        fs::create_dir_all(&overlay)?;
        let overlay = overlay.canonicalize()?;
        let root = manifests_dir().canonicalize().context("the repository has no folder `manifests`")?;
        let folders: Vec<_> = folders.iter().map(|name| relative(&overlay, &root.join(name))).collect();
        let kustomization = serde_json::json!({ "namespace": namespace, "resources": folders });
        fs::write(overlay.join("kustomization.yaml"), kustomization.to_string())?;
        let output = plane.kubectl()?.arg("kustomize").arg(&overlay).output()?;
        ensure!(output.status.success(), "kubectl kustomize: {}", String::from_utf8_lossy(&output.stderr));
        Self::parse(std::str::from_utf8(&output.stdout)?)
    }

    /// Parses YAML documents; empty ones are dropped.
    pub fn parse(text: &str) -> Result<Self> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(text).context("cannot parse the manifests as YAML")?;
        Ok(Self { objects: objects.into_iter().filter(|object| !object.is_null()).collect() })
    }

    /// Returns an object, for changes that an overlay's patch could make.
    pub fn object_mut(&mut self, kind: &str, name: &str) -> Result<&mut Value> {
        let found = self.objects.iter_mut().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
        found.with_context(|| format!("the manifests have no {kind} {name}"))
    }

    /// Applies all objects: namespaces first, the others concurrently.
    pub async fn apply(&self, client: &Client) -> Result<()> {
        // Other objects need their namespace; nothing else depends on the order.
        let is_first = |object: &&Value| object["kind"] == "Namespace";
        for object in self.objects.iter().filter(is_first) {
            apply(client, object).await?;
        }
        let rest = self.objects.iter().filter(|object| !is_first(object));
        futures_util::future::try_join_all(rest.map(|object| apply(client, object))).await.map(drop)
    }
}

/// Applies one object, as `kubectl apply --server-side --force-conflicts` does.
pub async fn apply(client: &Client, object: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (name, namespace) = (text(&object["metadata"]["name"]), text(&object["metadata"]["namespace"]));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    if kind.is_empty() || name.is_empty() {
        bail!("cannot apply an object without kind or name: {object}");
    }
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &namespace, &resource)
    };
    let applied = api.patch(&name, &PatchParams::apply("testbed").force(), &Patch::Apply(object)).await;
    applied.map(drop).with_context(|| format!("cannot apply {kind} {name}"))
}

/// Returns the relative path between two absolute folders; kustomize accepts no absolute paths.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}

/// Appends to a JSON list, which is created if it is null.
pub fn push_value(list: &mut Value, value: Value) -> Result<()> {
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().context("cannot append: the value is not a list")?.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_path_leads_from_one_folder_to_the_other() {
        for (from, to, expected) in [
            ("/tmp/testbed/overlay", "/srv/manifests/vllm", "../../../srv/manifests/vllm"),
            ("/srv/a", "/srv/b/c", "../b/c"),
            ("/srv", "/srv/b", "b"),
        ] {
            assert_eq!(relative(Path::new(from), Path::new(to)), Path::new(expected));
        }
    }
}
