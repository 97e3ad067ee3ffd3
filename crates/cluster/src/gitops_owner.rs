//! Who else writes an object, where its labels or annotations say so.

use kube::{Resource, ResourceExt};

/// Labels that tools put on what they keep in step with a repository, and the tools' names.
const LABELS: [(&str, &str); 5] = [
    ("kustomize.toolkit.fluxcd.io/name", "Flux"),
    ("helm.toolkit.fluxcd.io/name", "Flux"),
    ("argocd.argoproj.io/instance", "Argo CD"),
    ("fleet.cattle.io/bundle-id", "Fleet"),
    ("kapp.k14s.io/app", "kapp"),
];
/// The same, as annotations.
const ANNOTATIONS: [(&str, &str); 3] = [
    ("argocd.argoproj.io/tracking-id", "Argo CD"),
    ("objectset.rio.cattle.io/id", "Fleet"),
    ("configmanagement.gke.io/managed", "Config Sync"),
];

/// The tool that keeps this object as a repository says, if one does.
pub(crate) fn detect(object: &impl Resource) -> Option<&'static str> {
    let marked = |marks: &[(&str, &'static str)], found: &std::collections::BTreeMap<String, String>| {
        marks.iter().find(|(name, _)| found.contains_key(*name)).map(|(_, tool)| *tool)
    };
    marked(&LABELS, object.labels()).or_else(|| marked(&ANNOTATIONS, object.annotations()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    fn owner_of(metadata: &serde_json::Value) -> Option<&'static str> {
        let object: ConfigMap = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        detect(&object)
    }

    #[test]
    fn the_marks_of_tools_are_known() {
        assert_eq!(owner_of(&json!({})), None);
        assert_eq!(owner_of(&json!({"labels": {"app": "x"}, "annotations": {"note": "y"}})), None);
        assert_eq!(owner_of(&json!({"labels": {"kustomize.toolkit.fluxcd.io/name": "apps"}})), Some("Flux"));
        assert_eq!(owner_of(&json!({"annotations": {"argocd.argoproj.io/tracking-id": "a:b"}})), Some("Argo CD"));
    }
}
