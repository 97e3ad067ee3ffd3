//! HTTP client for a hub's API, and the classification of its responses.
//!
//! The API is described in <https://huggingface.co/docs/hub/api>. `resolve` returns the file or a redirect to its
//! storage. reqwest removes the token when a redirect leads to another host.

use super::HubLimits;
use crate::{
    FetchError, FetchReason, HubRef, HubToken,
    manifest::{FileHash, RemoteFile},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Response, StatusCode,
    header::{AUTHORIZATION, HeaderValue, LINK, RANGE, RETRY_AFTER},
    redirect,
};
use rollora_api::cause::root_cause;
use serde::Deserialize;
use std::{fmt, sync::OnceLock, time::Duration};
use tokio::time::timeout;

/// A longer response is an error. An adapter has about a dozen files, so their list is much shorter.
const MAX_RESPONSE_BYTES: usize = 4 << 20;
/// Encodes `/` too, because a revision like `refs/pr/1` is a single segment of a URL's path.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) struct HubClient {
    endpoint: String,
    token: HubToken,
    limits: HubLimits,
    /// Created for the first fetch: many sidecars never use a hub, and the system's CA certificates need much memory.
    http: OnceLock<reqwest::Client>,
}

impl fmt::Debug for HubClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubClient").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct RevisionInfo {
    sha: String,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: u64,
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl HubClient {
    /// Returns `None` if `endpoint` is not a plain HTTP or HTTPS URL.
    pub(super) fn new(endpoint: &str, token: HubToken, limits: HubLimits) -> Option<Self> {
        let url = reqwest::Url::parse(endpoint).ok()?;
        let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        let is_supported = matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain;
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        is_supported.then_some(Self { endpoint, token, limits, http: OnceLock::new() })
    }

    /// Resolves the revision of `name` to a commit.
    pub(super) async fn resolve_commit(&self, name: &HubRef) -> Result<String, FetchError> {
        let revision = name.revision.as_deref().filter(|revision| !revision.is_empty()).unwrap_or("main");
        let revision = utf8_percent_encode(revision, PATH_SEGMENT);
        let path = format!("/api/models/{}/revision/{revision}", repository_path(name)?);
        let info: RevisionInfo = self.get_json(name, &path).await?.0;
        // The commit becomes the name of a local folder.
        let is_valid = !info.sha.is_empty() && info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if is_valid { Ok(info.sha) } else { Err(self.unexpected_response(name, "an invalid commit id")) }
    }

    /// Lists all files of `commit`.
    pub(super) async fn list_files(&self, name: &HubRef, commit: &str) -> Result<Vec<RemoteFile>, FetchError> {
        let path = format!("/api/models/{}/tree/{commit}?recursive=true", repository_path(name)?);
        let (entries, more): (Vec<TreeEntry>, bool) = self.get_json(name, &path).await?;
        if more {
            let message = format!("`{name}` has more than a thousand files: publish the adapter in its own repository");
            return Err(FetchError::new(FetchReason::BadAdapter, message));
        }
        let files = entries.into_iter().filter(|entry| entry.kind == "file");
        Ok(files
            .map(|entry| match entry.lfs {
                Some(lfs) => RemoteFile { name: entry.path, size: lfs.size, hash: FileHash::Sha256(lfs.oid) },
                None => RemoteFile { name: entry.path, size: entry.size, hash: FileHash::GitBlob(entry.oid) },
            })
            .collect())
    }

    /// Requests a file from byte `from` on. The hub may ignore the range and respond with the whole file.
    pub(super) async fn open_file(
        &self,
        name: &HubRef,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Response, FetchError> {
        let file = utf8_percent_encode(file, PATH_SEGMENT);
        self.get(name, &format!("/{}/resolve/{commit}/{file}", repository_path(name)?), from).await
    }

    /// Reads the next bytes of a response; `None` at its end.
    pub(super) async fn next_chunk(
        &self,
        name: &HubRef,
        response: &mut Response,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, FetchError> {
        match timeout(self.limits.stall_timeout, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.unreachable(name, &format!("the connection broke: {}", root_cause(&error)))),
            Err(_) => Err(self.unreachable(name, &format!("no data for {:?}", self.limits.stall_timeout))),
        }
    }

    /// Requests JSON. Also returns whether the response has another page.
    async fn get_json<T: for<'a> Deserialize<'a>>(&self, name: &HubRef, path: &str) -> Result<(T, bool), FetchError> {
        let mut response = self.get(name, path, 0).await?;
        let more = response
            .headers()
            .get_all(LINK)
            .iter()
            .any(|link| link.to_str().is_ok_and(|link| link.contains("rel=\"next\"")));
        let mut body = Vec::new();
        while let Some(chunk) = self.next_chunk(name, &mut response).await? {
            body.extend_from_slice(chunk.as_ref());
            if body.len() > MAX_RESPONSE_BYTES {
                return Err(self.unexpected_response(name, "a response of more than 4 MiB"));
            }
        }
        let parsed = serde_json::from_slice(&body);
        Ok((parsed.map_err(|error| self.unexpected_response(name, &format!("an invalid response ({error})")))?, more))
    }

    async fn get(&self, name: &HubRef, path: &str, from: u64) -> Result<Response, FetchError> {
        let mut request = self.http_client(name)?.get(format!("{}{path}", self.endpoint));
        if let Some(token) = self.authorization()? {
            request = request.header(AUTHORIZATION, token);
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = match timeout(self.limits.stall_timeout, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.unreachable(name, &root_cause(&error))),
            Err(_) => {
                return Err(self.unreachable(name, &format!("no response within {:?}", self.limits.stall_timeout)));
            }
        };
        if response.status().is_success() { Ok(response) } else { Err(self.status_error(name, &response)) }
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, FetchError> {
        let unusable = |what: &str| {
            let message = format!("the hub token {what}: store the token alone, on one line");
            FetchError::new(FetchReason::HubUnauthorized, message)
        };
        let token = self.token.read().map_err(|error| unusable(&format!("cannot be read ({error})")))?;
        let header = |token: String| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| unusable("contains characters that cannot be sent in a header"))?;
            value.set_sensitive(true);
            Ok(value)
        };
        token.map(header).transpose()
    }

    fn http_client(&self, name: &HubRef) -> Result<&reqwest::Client, FetchError> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Rollora's programs install a provider first; other users of this library may not. Losing the race against
            // another thread means that a provider is installed.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        // If the endpoint uses TLS, every redirect must use it too.
        let https_only = self.endpoint.starts_with("https://");
        let built = reqwest::Client::builder()
            .connect_timeout(self.limits.connect_timeout)
            .redirect(redirect::Policy::limited(5))
            .https_only(https_only)
            .http1_only()
            .pool_idle_timeout(Duration::from_secs(10))
            .pool_max_idle_per_host(1)
            .build();
        let http = built.map_err(|error| self.unreachable(name, &root_cause(&error)))?;
        Ok(self.http.get_or_init(|| http))
    }

    fn status_error(&self, name: &HubRef, response: &Response) -> FetchError {
        let status = response.status();
        let hub = &self.endpoint;
        let (reason, message) = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (
                FetchReason::HubUnauthorized,
                format!(
                    "{hub} denied access to `{name}` ({status}): check that the name is correct, and that the token of \
                     HF_TOKEN or --hf-token-file may read it"
                ),
            ),
            StatusCode::NOT_FOUND => (
                FetchReason::HubNotFound,
                format!("{hub} has no `{name}` (404): check the name, and the revision after the @"),
            ),
            StatusCode::TOO_MANY_REQUESTS => (
                FetchReason::HubRateLimited,
                format!("{hub} limits the rate of requests (429), so `{name}` is not fetched yet: it will be retried"),
            ),
            status => (
                FetchReason::HubError,
                format!(
                    "{hub} responded with {status} for `{name}`: it will be retried; if this persists, ask the hub's \
                     operators"
                ),
            ),
        };
        let requested = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        // One response may delay the next attempt by at most an hour.
        let retry_after = requested.map(|seconds: u64| Duration::from_secs(seconds.min(3600)));
        FetchError { retry_after, ..FetchError::new(reason, message) }
    }

    fn unreachable(&self, name: &HubRef, detail: &str) -> FetchError {
        let hub = &self.endpoint;
        let message = format!(
            "fetching `{name}` from {hub} failed ({detail}) and will be resumed: check that this pod can reach the hub"
        );
        FetchError::new(FetchReason::HubUnreachable, message)
    }

    fn unexpected_response(&self, name: &HubRef, detail: &str) -> FetchError {
        let hub = &self.endpoint;
        FetchError::new(
            FetchReason::HubError,
            format!("{hub} sent {detail} for `{name}`: check that HF_ENDPOINT is the URL of a hub"),
        )
    }
}

/// Returns the repository's name if it is safe as a part of a URL's path.
fn repository_path(name: &HubRef) -> Result<&str, FetchError> {
    let is_valid = |part: &str| {
        let letters = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        !part.is_empty() && !part.starts_with('.') && letters
    };
    match name.repository.split_once('/') {
        Some((organization, repository)) if is_valid(organization) && is_valid(repository) => Ok(&name.repository),
        _ => Err(FetchError::new(
            FetchReason::HubNotFound,
            format!("`{name}` is not a repository name: write it like my-org/my-adapter, or my-org/my-adapter@v1"),
        )),
    }
}
