//! Who may say what to the API server, and how it is known to be the right one.

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

/// The API server's own certificates, which it makes at its first start.
pub(super) const CERT_DIR: &str = "certificates";
/// Tokens that are known without asking etcd.
pub(super) const TOKEN_FILE: &str = "tokens.csv";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Whoever this token belongs to.
    Token(String),
    /// The same, read from a file each time it may have been renewed.
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
        let identity =
            Self { folder: folder.to_owned(), port, admin_token: format!("{:032x}", rand::random::<u128>()) };
        fs::write(folder.join(TOKEN_FILE), format!("{},admin,admin,system:masters\n", identity.admin_token))?;
        let admin = Credential::Token(identity.admin_token.clone());
        fs::write(identity.admin_kubeconfig(), identity.kubeconfig(&admin, "default"))?;
        Ok(identity)
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

    /// The API server writes its certificate and, behind it, that of the authority which signed it.
    pub(super) fn save_ca_certificate(&self) -> Result<()> {
        const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
        let file = self.folder.join(CERT_DIR).join("apiserver.crt");
        let chain = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(chain.matches(BEGIN).count() == 2, "{} holds not just two certificates", file.display());
        let authority = chain.rsplit(BEGIN).next().unwrap_or_default();
        fs::write(self.ca_certificate(), format!("{BEGIN}{authority}"))?;
        Ok(())
    }

    /// JSON is YAML too.
    pub(super) fn kubeconfig(&self, credential: &Credential, namespace: &str) -> String {
        let user = match credential {
            Credential::Token(token) => json!({ "token": token }),
            Credential::TokenFile(file) => json!({ "tokenFile": file }),
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "bed",
                "cluster": { "server": self.url(), "certificate-authority": self.ca_certificate() }
            }],
            "users": [{ "name": "bed", "user": user }],
            "contexts": [{ "name": "bed", "context": { "cluster": "bed", "user": "bed", "namespace": namespace } }],
            "current-context": "bed",
        });
        format!("{config:#}\n")
    }

    pub(super) async fn client(&self, credential: &Credential) -> Result<Client> {
        let config = Kubeconfig::from_yaml(&self.kubeconfig(credential, "default"))?;
        let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        // It is on this machine, whatever the environment says about others.
        config.proxy_url = None;
        // A test sees what was answered.
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
    let wish = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(seconds), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(admin.clone(), namespace);
    let made = accounts.create_token_request(account, &PostParams::default(), &wish).await;
    let made = made.with_context(|| format!("no token for the service account {namespace}/{account}"))?;
    Ok(made.status.context("a token request was answered without a status")?.token)
}
