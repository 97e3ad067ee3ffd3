//! What a pod shows to the API server: a token of its service account, bound to the pod and soon over, and a kubeconfig
//! that names the token's file, in place of the folder that a kubelet mounts at `/var/run/secrets`.

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

/// The shortest life that the API server gives.
pub(super) const MIN_LIFETIME: Duration = Duration::from_mins(10);

/// Where the API server is, and how it proves that it is itself.
#[derive(Debug, Clone)]
pub(super) struct ApiServerInfo {
    url: String,
    /// Its authority's certificates, as PEM.
    ca_certificate: String,
}

/// A token.
#[derive(Debug, Clone)]
pub(super) struct BoundToken {
    pub(super) value: String,
    /// When another one is due.
    pub(super) renew_at: Timestamp,
}

impl ApiServerInfo {
    /// The one at this address, whose authority's certificates stand in this file.
    pub(super) fn new(url: &str, authority: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(authority);
        let authority = text.with_context(|| format!("cannot read {}", authority.display()))?;
        Ok(Self { url: url.to_owned(), ca_certificate: authority })
    }

    /// The certificates, as PEM.
    pub(super) fn ca_certificate(&self) -> &str {
        &self.ca_certificate
    }

    /// A kubeconfig for who has the token in this file.
    pub(super) fn kubeconfig(&self, namespace: &str, token_file: &Path) -> Result<Vec<u8>> {
        let authority = ByteString(self.ca_certificate.clone().into_bytes());
        Ok(serde_json::to_vec_pretty(&json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "bed",
                "cluster": { "server": self.url, "certificate-authority-data": authority },
            }],
            "users": [{ "name": "pod", "user": { "tokenFile": token_file } }],
            "contexts": [{ "name": "pod", "context": { "cluster": "bed", "user": "pod", "namespace": namespace } }],
            "current-context": "pod",
        }))?)
    }
}

/// Asks for a token of the pod's service account. The API server knows it for as long as the pod is there.
pub(super) async fn request_token(
    client: &Client,
    pod: &Pod,
    audience: Option<&str>,
    life: Duration,
    renew_after: Duration,
) -> Result<BoundToken> {
    let metadata = &pod.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let account = service_account(pod);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.map(str::to_owned).into_iter().collect(),
            expiration_seconds: i64::try_from(life.max(MIN_LIFETIME).as_secs()).ok(),
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
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let answer = answer.with_context(|| format!("no token of the service account {account:?}"))?;
    let status = answer.status.context("the answer has no token")?;
    let renew = clock::timestamp().checked_add(renew_after).unwrap_or(Timestamp::MAX);
    Ok(BoundToken { value: status.token, renew_at: renew.min(status.expiration_timestamp.0) })
}

/// The name of the pod's service account.
pub(super) fn service_account(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}
