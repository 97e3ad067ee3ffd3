//! The API server's audit log: which user requested what, and whether RBAC allowed it.

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

/// Logs everything except the API server's requests to itself.
pub(super) const AUDIT_POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:apiserver"]
- level: Metadata
"#;

/// The requests since some moment. A request is logged when its response is complete, which the client may see first.
#[derive(Debug, Clone)]
pub struct AuditLog {
    file: PathBuf,
    offset: u64,
}

/// One request, as parsed from an `audit.k8s.io/v1` event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// User name; for a service account `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// User agent that the client sent.
    pub user_agent: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`…
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// Resource in the plural; empty for requests that are not about a resource.
    pub resource: String,
    /// Subresource such as `status`; empty if there is none.
    pub subresource: String,
    /// Namespace; empty for requests without one.
    pub namespace: String,
    /// Object name; empty for requests that are not about a single object.
    pub name: String,
    /// Request URI with its query.
    pub uri: String,
    /// HTTP status code of the response.
    pub code: u16,
    /// Outcome of the authorization.
    pub decision: AuthorizationDecision,
    /// RBAC's explanation, which names the binding and the role.
    pub reason: String,
    /// When the API server received the request.
    pub received_at: Timestamp,
}

/// Outcome of the authorization of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorizationDecision {
    /// A role allows the request.
    Allowed,
    /// No role allows the request.
    Forbidden,
    /// The request was not authorized at all, because authentication failed.
    Unauthenticated,
}

impl AuditLog {
    pub(super) fn from_end(file: &Path) -> Self {
        Self { file: file.to_owned(), offset: fs::metadata(file).map_or(0, |metadata| metadata.len()) }
    }

    /// Returns the requests that were logged since this log was created.
    pub fn events(&self) -> Result<Vec<AuditEvent>> {
        let mut file = fs::File::open(&self.file).with_context(|| format!("cannot open {}", self.file.display()))?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // The last line may be incomplete.
        let complete_length = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let lines = bytes[..complete_length].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let events = lines.map(|line| {
            let event = serde_json::from_slice::<AuditLine>(line);
            event.with_context(|| format!("not an audit event: {}", String::from_utf8_lossy(line)))
        });
        events.filter_map(|line| line.map(AuditLine::into_event).transpose()).collect()
    }

    /// Returns the requests of `user` since this log was created.
    pub fn events_of_user(&self, user: &str) -> Result<Vec<AuditEvent>> {
        let mut events = self.events()?;
        events.retain(|event| event.user == user);
        Ok(events)
    }
}

/// The fields of an `audit.k8s.io/v1` event that are needed here.
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
    /// Returns `None` for stages that do not count: a watch counts when it starts, other requests when they are
    /// complete.
    fn into_event(self) -> Option<AuditEvent> {
        let counted_stage = if self.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
        if self.stage != counted_stage {
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
