//! What was asked of the API server, by whom, and whether they may.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

pub(super) const AUDIT_LOG: &str = "audit.log";

/// Everything but what the API server asks of itself.
pub(super) const AUDIT_POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:apiserver"]
- level: Metadata
"#;

/// The requests since a moment. A request is written down when it was answered, which its sender may see first.
#[derive(Debug, Clone)]
pub struct AuditLog {
    file: PathBuf,
    offset: u64,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// Who asked; a service account is `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// How the program called itself.
    pub user_agent: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`…
    pub verb: String,
    /// The API group; empty for the core.
    pub group: String,
    /// In the plural; empty where no object was asked for.
    pub resource: String,
    /// `status` and its like, else empty.
    pub subresource: String,
    /// Empty where the question was not about one.
    pub namespace: String,
    /// Empty where the question was not about one object.
    pub name: String,
    /// What was asked for.
    pub uri: String,
    /// The status of the answer.
    pub code: u16,
    /// Whether RBAC let it through.
    pub decision: AuthorizationDecision,
    /// Which binding and role did, in RBAC's words.
    pub reason: String,
    /// When it came in.
    pub received_at: Timestamp,
}

/// What RBAC said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorizationDecision {
    /// The user may.
    Allowed,
    /// No role lets the user do that.
    Forbidden,
    /// It was not asked: nobody knew the user.
    Unauthenticated,
}

impl AuditLog {
    pub(super) fn from_end(file: &Path) -> Self {
        Self { file: file.to_owned(), offset: fs::metadata(file).map_or(0, |metadata| metadata.len()) }
    }

    /// What has come in since.
    pub fn events(&self) -> Result<Vec<AuditEvent>> {
        let mut file = fs::File::open(&self.file).with_context(|| format!("cannot open {}", self.file.display()))?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // The last line may be half written.
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let lines = bytes[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let events = lines.map(|line| {
            let read = serde_json::from_slice::<AuditLine>(line);
            read.with_context(|| format!("not an audit event: {}", String::from_utf8_lossy(line)))
        });
        events.filter_map(|line| line.map(AuditLine::into_event).transpose()).collect()
    }

    /// What this user has asked since.
    pub fn events_of_user(&self, user: &str) -> Result<Vec<AuditEvent>> {
        let mut events = self.events()?;
        events.retain(|event| event.user == user);
        Ok(events)
    }
}

/// `audit.k8s.io/v1`, as far as it is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditLine {
    stage: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: AuditUser,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: ObjectRef,
    response_status: Option<ResponseStatus>,
    request_received_timestamp: Timestamp,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct AuditUser {
    #[serde(default)]
    username: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    namespace: String,
    name: String,
    api_group: String,
    subresource: String,
}

#[derive(Debug, Deserialize)]
struct ResponseStatus {
    code: Option<u16>,
}

impl AuditLine {
    /// A watch counts when it begins, everything else when it is answered.
    fn into_event(self) -> Option<AuditEvent> {
        let counts = if self.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
        if self.stage != counts {
            return None;
        }
        let annotation = |name: &str| self.annotations.get(name).map(String::as_str);
        Some(AuditEvent {
            decision: match annotation("authorization.k8s.io/decision") {
                Some("allow") => AuthorizationDecision::Allowed,
                Some(_) => AuthorizationDecision::Forbidden,
                None => AuthorizationDecision::Unauthenticated,
            },
            reason: annotation("authorization.k8s.io/reason").unwrap_or_default().to_owned(),
            user: self.user.username,
            user_agent: self.user_agent,
            verb: self.verb,
            group: self.object_ref.api_group,
            resource: self.object_ref.resource,
            subresource: self.object_ref.subresource,
            namespace: self.object_ref.namespace,
            name: self.object_ref.name,
            uri: self.request_uri,
            code: self.response_status.and_then(|status| status.code).unwrap_or_default(),
            received_at: self.request_received_timestamp,
        })
    }
}
