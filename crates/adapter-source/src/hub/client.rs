//! What a hub is asked, and what its answers mean.
//!
//! The interface: <https://huggingface.co/docs/hub/api>; `resolve` answers with the file or a redirect to where it
//! lies. reqwest takes the token off a redirect to another host.

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

/// A list of files is cut off beyond this: an adapter has a dozen.
const MAX_RESPONSE_BYTES: usize = 4 << 20;
/// In a path of a URL, a revision like `refs/pr/1` is one part.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Asks one hub.
pub(super) struct HubClient {
    endpoint: String,
    token: HubToken,
    limits: HubLimits,
    /// Made for the first fetch: many sidecars never see a hub, and the system's certificates are large.
    http: OnceLock<reqwest::Client>,
}

impl fmt::Debug for HubClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
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
    /// None where `endpoint` is no address.
    pub(super) fn new(endpoint: &str, token: HubToken, limits: HubLimits) -> Option<Self> {
        let url = reqwest::Url::parse(endpoint).ok()?;
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        let spoken = matches!(url.scheme(), "http" | "https") && url.has_host() && plain;
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        spoken.then_some(Self { endpoint, token, limits, http: OnceLock::new() })
    }

    /// The commit that the revision of `name` stands for.
    pub(super) async fn resolve_commit(&self, name: &HubRef) -> Result<String, FetchError> {
        let revision = name.revision.as_deref().filter(|revision| !revision.is_empty()).unwrap_or("main");
        let revision = utf8_percent_encode(revision, PATH_SEGMENT);
        let path = format!("/api/models/{}/revision/{revision}", repository_path(name)?);
        let info: RevisionInfo = self.get_json(name, &path).await?.0;
        // It becomes a name on our disk.
        let plain = !info.sha.is_empty() && info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if plain { Ok(info.sha) } else { Err(self.unexpected_response(name, "a commit without a name")) }
    }

    /// Everything at that commit.
    pub(super) async fn list_files(&self, name: &HubRef, commit: &str) -> Result<Vec<RemoteFile>, FetchError> {
        let path = format!("/api/models/{}/tree/{commit}?recursive=true", repository_path(name)?);
        let (entries, more): (Vec<TreeEntry>, bool) = self.get_json(name, &path).await?;
        if more {
            let message = format!("`{name}` has more than a thousand files: an adapter has a repository of its own");
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

    /// A file from the byte `from` on; the answer may be the whole of it all the same.
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

    /// The next bytes of an answer; none at its end.
    pub(super) async fn next_chunk(
        &self,
        name: &HubRef,
        response: &mut Response,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, FetchError> {
        match timeout(self.limits.stall_timeout, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.unreachable(name, &format!("the connection broke: {}", root_cause(&error)))),
            Err(_) => Err(self.unreachable(name, &format!("nothing came for {:?}", self.limits.stall_timeout))),
        }
    }

    /// An answer of JSON, and whether there is another page of it.
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
                return Err(self.unexpected_response(name, "an answer of more than 4 MiB"));
            }
        }
        let read = serde_json::from_slice(&body);
        Ok((
            read.map_err(|error| self.unexpected_response(name, &format!("an answer that cannot be read ({error})")))?,
            more,
        ))
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
                return Err(
                    self.unreachable(name, &format!("it did not answer within {:?}", self.limits.stall_timeout))
                );
            }
        };
        if response.status().is_success() { Ok(response) } else { Err(self.status_error(name, &response)) }
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, FetchError> {
        let unusable = |what: &str| {
            FetchError::new(FetchReason::HubUnauthorized, format!("the token of the hub {what}: write it on one line"))
        };
        let token = self.token.read().map_err(|error| unusable(&format!("cannot be read ({error})")))?;
        let header = |token: String| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| unusable("holds characters that cannot be sent"))?;
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
            // Programs install it first thing; losing the race against another thread means that it is installed.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        // What the endpoint has as TLS stays so on every way that it leads.
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
                    "{hub} does not give `{name}` to us ({status}): is the name right, and may the token of HF_TOKEN or \
                     --hf-token-file read it?"
                ),
            ),
            StatusCode::NOT_FOUND => (
                FetchReason::HubNotFound,
                format!("{hub} has no `{name}` (404): is the name right, and the revision behind the @?"),
            ),
            StatusCode::TOO_MANY_REQUESTS => (
                FetchReason::HubRateLimited,
                format!("{hub} asks for patience (429) about `{name}`: it is tried again"),
            ),
            status => (
                FetchReason::HubError,
                format!("{hub} answered {status} about `{name}`: it is tried again; if it stays so, ask its operators"),
            ),
        };
        let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        // Nobody is left alone for longer than an hour by one answer.
        let retry_after = asked.map(|seconds: u64| Duration::from_secs(seconds.min(3600)));
        FetchError { retry_after, ..FetchError::new(reason, message) }
    }

    fn unreachable(&self, name: &HubRef, detail: &str) -> FetchError {
        let hub = &self.endpoint;
        let message = format!(
            "{hub} did not bring `{name}` ({detail}): it goes on from there; is the hub reachable from this pod?"
        );
        FetchError::new(FetchReason::HubUnreachable, message)
    }

    fn unexpected_response(&self, name: &HubRef, detail: &str) -> FetchError {
        let hub = &self.endpoint;
        FetchError::new(
            FetchReason::HubError,
            format!("{hub} gave {detail} about `{name}`: is this the address of a hub (HF_ENDPOINT)?"),
        )
    }
}

/// The repository, as part of a URL.
fn repository_path(name: &HubRef) -> Result<&str, FetchError> {
    let plain = |part: &str| {
        let letters = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        !part.is_empty() && !part.starts_with('.') && letters
    };
    match name.repository.split_once('/') {
        Some((organisation, repository)) if plain(organisation) && plain(repository) => Ok(&name.repository),
        _ => Err(FetchError::new(
            FetchReason::HubNotFound,
            format!("`{name}` is no name of a repository: write it like my-org/my-adapter, or my-org/my-adapter@v1"),
        )),
    }
}
