//! HTTP client of a hub, and the interpretation of its responses.
//!
//! The API is described at <https://huggingface.co/docs/hub/api>; `resolve` responds with the file or redirects to it.
//! reqwest removes the token when a redirect leads to another host.

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

/// Maximum size of a list of files. An adapter has about a dozen.
const MAX_RESPONSE_BYTES: usize = 4 << 20;
/// Characters to escape in a URL's path. A revision like `refs/pr/1` is one segment, so `/` is escaped too.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) struct HubClient {
    endpoint: String,
    token: HubToken,
    limits: HubLimits,
    /// Created for the first fetch: many sidecars never use a hub, and the system's certificates need much memory.
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
    /// Returns `None` if `endpoint` is not a plain `http` or `https` URL.
    pub(super) fn new(endpoint: &str, token: HubToken, limits: HubLimits) -> Option<Self> {
        let url = reqwest::Url::parse(endpoint).ok()?;
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        let supported = matches!(url.scheme(), "http" | "https") && url.has_host() && plain;
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        supported.then_some(Self { endpoint, token, limits, http: OnceLock::new() })
    }

    /// Resolves the revision of `name` to a commit.
    pub(super) async fn resolve_commit(&self, name: &HubRef) -> Result<String, FetchError> {
        let revision = name.revision.as_deref().filter(|revision| !revision.is_empty()).unwrap_or("main");
        let revision = utf8_percent_encode(revision, PATH_SEGMENT);
        let path = format!("/api/models/{}/revision/{revision}", repository_path(name)?);
        let info: RevisionInfo = self.get_json(name, &path).await?.0;
        // The commit becomes the name of a local directory.
        let plain = !info.sha.is_empty() && info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if plain { Ok(info.sha) } else { Err(self.unexpected_response(name, "an invalid commit id")) }
    }

    /// Lists all files of the repository at `commit`.
    pub(super) async fn list_files(&self, name: &HubRef, commit: &str) -> Result<Vec<RemoteFile>, FetchError> {
        let path = format!("/api/models/{}/tree/{commit}?recursive=true", repository_path(name)?);
        let (entries, more): (Vec<TreeEntry>, bool) = self.get_json(name, &path).await?;
        if more {
            let message =
                format!("`{name}` has more than a thousand files: publish the adapter in a repository of its own");
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

    /// Requests a file from the byte `from` on. The hub may ignore the range and send the whole file.
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

    /// Returns the next bytes of a response; `None` at its end.
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

    /// Requests a JSON document. Also returns whether there is another page of it.
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
            FetchError::new(FetchReason::HubUnauthorized, format!("the hub's token {what}: write it on one line"))
        };
        let token = self.token.read().map_err(|error| unusable(&format!("cannot be read ({error})")))?;
        let header = |token: String| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| unusable("contains characters that cannot be sent"))?;
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
            // Our programs install a provider at startup. The call fails only if another thread installed one
            // meanwhile.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        // If the endpoint uses TLS, no redirect may lead to plain HTTP.
        let strict = self.endpoint.starts_with("https://");
        let built = reqwest::Client::builder()
            .connect_timeout(self.limits.connect_timeout)
            .redirect(redirect::Policy::limited(5))
            .https_only(strict)
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
                    "{hub} denied access to `{name}` ({status}): check the name, and that the token in HF_TOKEN or \
                     --hf-token-file may read it"
                ),
            ),
            StatusCode::NOT_FOUND => (
                FetchReason::HubNotFound,
                format!("{hub} has no `{name}` (404): check the name, and the revision after the @"),
            ),
            StatusCode::TOO_MANY_REQUESTS => (
                FetchReason::HubRateLimited,
                format!("{hub} limits the rate of requests (429) for `{name}`: the download is retried"),
            ),
            status => (
                FetchReason::HubError,
                format!(
                    "{hub} responded {status} for `{name}`: the download is retried; if this persists, ask the hub's \
                     operators"
                ),
            ),
        };
        let requested = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        // One response delays the next attempt by an hour at most.
        let retry_after = requested.map(|seconds: u64| Duration::from_secs(seconds.min(3600)));
        FetchError { retry_after, ..FetchError::new(reason, message) }
    }

    fn unreachable(&self, name: &HubRef, detail: &str) -> FetchError {
        let hub = &self.endpoint;
        let message = format!(
            "the download of `{name}` from {hub} failed ({detail}): the next attempt resumes it; check that the hub is \
             reachable from this pod"
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

/// Returns the repository as part of a URL's path, or an error if it is not a valid name.
fn repository_path(name: &HubRef) -> Result<&str, FetchError> {
    let plain = |part: &str| {
        let letters = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        !part.is_empty() && !part.starts_with('.') && letters
    };
    match name.repository.split_once('/') {
        Some((organisation, repository)) if plain(organisation) && plain(repository) => Ok(&name.repository),
        _ => Err(FetchError::new(
            FetchReason::HubNotFound,
            format!(
                "`{name}` is not the name of a repository: write it like my-org/my-adapter, or my-org/my-adapter@v1"
            ),
        )),
    }
}
