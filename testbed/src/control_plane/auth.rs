//! Authentication: the credentials of clients and the certificates of the API server.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Folder of the certificates that the API server generates at its first start.
pub(super) const CERT_DIR: &str = "certificates";
/// File of static tokens, which need no lookup in etcd.
pub(super) const TOKEN_FILE: &str = "tokens.csv";

/// What a client authenticates with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A bearer token, given as text.
    Token(String),
    /// File with a bearer token, read again whenever the token may have been renewed.
    TokenFile(PathBuf),
}

#[derive(Debug)]
pub(super) struct AuthFiles {
    folder: PathBuf,
    port: u16,
    admin_token: String,
}

impl AuthFiles {
    pub(super) fn create(folder: &Path, port: u16) -> Result<Self> {
        let auth_files =
            Self { folder: folder.to_owned(), port, admin_token: format!("{:032x}", rand::random::<u128>()) };
        fs::write(folder.join(TOKEN_FILE), format!("{},admin,admin,system:masters\n", auth_files.admin_token))?;
        let admin = Credential::Token(auth_files.admin_token.clone());
        fs::write(auth_files.admin_kubeconfig(), auth_files.kubeconfig(&admin, "default"))?;
        Ok(auth_files)
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(super) fn ca_certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub(super) fn admin_token(&self) -> &str {
        &self.admin_token
    }

    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The API server writes its certificate, followed by that of the CA that signed it.
    pub(super) fn save_ca_certificate(&self) -> Result<()> {
        const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
        let file = self.folder.join(CERT_DIR).join("apiserver.crt");
        let chain = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(chain.matches(BEGIN).count() == 2, "{} does not contain exactly two certificates", file.display());
        let authority = chain.rsplit(BEGIN).next().unwrap_or_default();
        fs::write(self.ca_certificate(), format!("{BEGIN}{authority}"))?;
        Ok(())
    }

    /// Returns JSON, which is valid YAML.
    pub(super) fn kubeconfig(&self, credential: &Credential, namespace: &str) -> String {
        let user = match credential {
            Credential::Token(token) => json!({ "token": token }),
            Credential::TokenFile(file) => json!({ "tokenFile": file }),
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "testbed",
                "cluster": { "server": self.url(), "certificate-authority": self.ca_certificate() }
            }],
            "users": [{ "name": "testbed", "user": user }],
            "contexts": [{
                "name": "testbed",
                "context": { "cluster": "testbed", "user": "testbed", "namespace": namespace },
            }],
            "current-context": "testbed",
        });
        format!("{config:#}\n")
    }

    pub(super) async fn client(&self, credential: &Credential) -> Result<Client> {
        let config = Kubeconfig::from_yaml(&self.kubeconfig(credential, "default"))?;
        let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        // The API server is on this machine: proxy settings of the environment do not apply.
        config.proxy_url = None;
        // Tests must see the first response.
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }
}

pub(crate) async fn request_token(
    admin: &Client,
    namespace: &str,
    account: &str,
    lifetime: Duration,
) -> Result<String> {
    let seconds = i64::try_from(lifetime.as_secs())?;
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(seconds), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(admin.clone(), namespace);
    let created = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let created =
        created.with_context(|| format!("cannot request a token for service account {namespace}/{account}"))?;
    Ok(created.status.context("the response to the token request has no status")?.token)
}
