//! Authentication, authorization and the audit log.

use super::{expect_api_error, on_shared_control_plane, wait_for};
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    core::v1::{ConfigMap, ServiceAccount},
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, PostParams},
    core::NamespaceResourceScope,
};
use rollora_testbed::control_plane::{AuditEvent, AuthorizationDecision, Credential};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::time::Duration;

async fn create<K>(client: &Client, namespace: &str, object: Value) -> Result<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
    K::DynamicType: Default,
{
    let objects = Api::<K>::namespaced(client.clone(), namespace);
    Ok(objects.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// Creates a service account that may only read ConfigMaps.
async fn create_reader_account(admin: &Client, namespace: &str) -> Result<()> {
    create::<ServiceAccount>(admin, namespace, json!({ "metadata": { "name": "reader" } })).await?;
    let rules = json!([{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"] }]);
    create::<Role>(admin, namespace, json!({ "metadata": { "name": "reads" }, "rules": rules })).await?;
    let binding = json!({
        "metadata": { "name": "reader-reads" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reads" },
        "subjects": [{ "kind": "ServiceAccount", "name": "reader", "namespace": namespace }],
    });
    create::<RoleBinding>(admin, namespace, binding).await?;
    Ok(())
}

#[test]
fn role_limits_account_and_audit_log_records_requests() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        let admin = plane.admin_client().await?;
        create_reader_account(&admin, namespace).await?;
        create::<ConfigMap>(&admin, namespace, json!({ "metadata": { "name": "map" } })).await?;
        let token = plane.service_account_token(namespace, "reader", Duration::from_mins(10)).await?;
        let client = plane.client(&Credential::Token(token)).await?;
        let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        // The API server learns of new roles by a watch.
        wait_for("the role to take effect", async || Ok(maps.list(&ListParams::default()).await.is_ok())).await?;

        let audit = plane.audit_log();
        maps.get("map").await?;
        let (code, message) = expect_api_error(maps.delete("map", &DeleteParams::default()).await)?;
        ensure!(code == 403 && message.contains("cannot delete resource \"configmaps\""), "{code} {message}");
        let elsewhere = Api::<ConfigMap>::namespaced(client, "kube-system");
        ensure!(expect_api_error(elsewhere.get("map").await)?.0 == 403);

        let user = format!("system:serviceaccount:{namespace}:reader");
        // A request is logged shortly after its response.
        wait_for("three requests in the audit log", async || Ok(audit.events_of_user(&user)?.len() == 3)).await?;
        let [get, delete, elsewhere] =
            <[AuditEvent; 3]>::try_from(audit.events_of_user(&user)?).ok().context("not three events")?;
        ensure!((get.verb.as_str(), get.code, get.decision) == ("get", 200, AuthorizationDecision::Allowed), "{get:?}");
        ensure!((get.group.as_str(), get.resource.as_str(), get.name.as_str()) == ("", "configmaps", "map"), "{get:?}");
        ensure!(get.reason.contains("reader-reads") && get.reason.contains("reads"), "{get:?}");
        ensure!(
            (delete.verb.as_str(), delete.code, delete.decision) == ("delete", 403, AuthorizationDecision::Forbidden),
            "{delete:?}"
        );
        ensure!(
            elsewhere.namespace == "kube-system" && elsewhere.decision == AuthorizationDecision::Forbidden,
            "{elsewhere:?}"
        );
        ensure!(get.received_at <= delete.received_at && delete.received_at <= elsewhere.received_at);
        Ok(())
    })
}

#[test]
fn renewed_token_file_is_read_again() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        create_reader_account(&plane.admin_client().await?, namespace).await?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("token");
        std::fs::write(&file, plane.service_account_token(namespace, "reader", Duration::from_mins(10)).await?)?;
        let config = plane.kubeconfig_for(&Credential::TokenFile(file.clone()), namespace);
        std::fs::write(folder.path().join("kubeconfig"), config)?;
        let can_list = || {
            let mut kubectl = plane.kubectl()?;
            kubectl.env("KUBECONFIG", folder.path().join("kubeconfig")).args(["get", "configmaps"]);
            Ok(kubectl.output()?.status.success())
        };
        wait_for("kubectl to list with the token", async || can_list()).await?;
        std::fs::write(&file, "an invalid token")?;
        ensure!(!can_list()?, "kubectl still used the old token");
        Ok(())
    })
}

#[test]
fn invalid_token_is_unauthorized() -> Result<()> {
    on_shared_control_plane(async |plane, namespace| {
        let client = plane.client(&Credential::Token("an invalid token".to_owned())).await?;
        let maps = Api::<ConfigMap>::namespaced(client, namespace);
        let (code, _) = expect_api_error(maps.list(&ListParams::default()).await)?;
        ensure!(code == 401, "{code}");
        Ok(())
    })
}
