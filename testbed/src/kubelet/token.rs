//! Credentials of a pod: a short-lived token of its service account, bound to the pod, and a kubeconfig that refers to
//! the token's file, in place of the folder that a kubelet mounts at `/var/run/secrets`.

use crate::clock;
use anyhow::{Context as _, Result};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Pod, ServiceAccount},
    },
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use serde_json::json;
use std::{path::Path, time::Duration};

/// Shortest lifetime that the API server grants.
pub(super) const MIN_LIFETIME: Duration = Duration::from_mins(10);

/// URL and CA certificates of the API server.
#[derive(Debug, Clone)]
pub(super) struct ApiServerInfo {
    url: String,
    /// CA certificates, as PEM.
    ca_certificate: String,
}

/// A token of a service account that is bound to a pod.
#[derive(Debug, Clone)]
pub(super) struct BoundToken {
    pub(super) value: String,
    /// When the token must be renewed.
    pub(super) renew_at: Timestamp,
}

impl ApiServerInfo {
    /// Reads the CA certificates from the file `authority`.
    pub(super) fn new(url: &str, ca_file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(ca_file);
        let ca_certificate = text.with_context(|| format!("cannot read {}", ca_file.display()))?;
        Ok(Self { url: url.to_owned(), ca_certificate })
    }

    pub(super) fn ca_certificate(&self) -> &str {
        &self.ca_certificate
    }

    /// Returns a kubeconfig that uses the token in `token_file`.
    pub(super) fn kubeconfig(&self, namespace: &str, token_file: &Path) -> Result<Vec<u8>> {
        let ca_certificate = ByteString(self.ca_certificate.clone().into_bytes());
        Ok(serde_json::to_vec_pretty(&json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "testbed",
                "cluster": { "server": self.url, "certificate-authority-data": ca_certificate },
            }],
            "users": [{ "name": "pod", "user": { "tokenFile": token_file } }],
            "contexts": [{ "name": "pod", "context": { "cluster": "testbed", "user": "pod", "namespace": namespace } }],
            "current-context": "pod",
        }))?)
    }
}

/// Requests a token of the pod's service account. The API server accepts it as long as the pod exists.
pub(super) async fn request_token(
    client: &Client,
    pod: &Pod,
    audience: Option<&str>,
    lifetime: Duration,
    renew_after: Duration,
) -> Result<BoundToken> {
    let metadata = &pod.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let account = service_account(pod);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.map(str::to_owned).into_iter().collect(),
            expiration_seconds: i64::try_from(lifetime.max(MIN_LIFETIME).as_secs()).ok(),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: metadata.name.clone(),
                uid: metadata.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let response = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let response = response.with_context(|| format!("cannot request a token for service account {account:?}"))?;
    let status = response.status.context("the response to the token request has no status")?;
    let renew = clock::timestamp().checked_add(renew_after).unwrap_or(Timestamp::MAX);
    Ok(BoundToken { value: status.token, renew_at: renew.min(status.expiration_timestamp.0) })
}

/// Returns the name of the pod's service account; `default` if the pod names none.
pub(super) fn service_account(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}
