//! Address of a vLLM server and the API key that it requires.

use crate::{TlsConfig, VllmClientError};
use reqwest::header::HeaderValue;
use std::fmt;
use url::Url;

/// API key that vLLM was started with (`--api-key`). Its `Debug` output does not contain it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Creates a key. Removes surrounding white space, such as the newline at the end of a file.
    pub fn new(key: &str) -> Self {
        Self(key.trim().to_owned())
    }

    /// Creates a key, or fails if it cannot be sent in a header.
    pub fn parse(text: &str) -> Result<Self, VllmClientError> {
        let key = Self::new(text);
        HeaderValue::from_str(key.as_str()).map(|_| key).map_err(|_| VllmClientError::InvalidApiKey)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Why a text cannot be the base URL of a vLLM server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The text is not a URL.
    #[error("`{text}` is not a URL ({detail}): write it like http://127.0.0.1:8000")]
    NotAUrl {
        /// Text that was parsed.
        text: String,
        /// Error of the URL parser.
        detail: String,
    },
    /// The scheme is neither `http` nor `https`.
    #[error("`{text}` has the scheme `{scheme}`: vLLM speaks http or https, write it like http://127.0.0.1:8000")]
    Scheme {
        /// Text that was parsed.
        text: String,
        /// Scheme of the URL.
        scheme: String,
    },
    /// The URL has a part that a base URL cannot have.
    #[error("`{text}` has {part}: give only scheme, host and port, like http://127.0.0.1:8000")]
    UnexpectedPart {
        /// Text that was parsed, without a password.
        text: String,
        /// Name of the part that must be removed.
        part: &'static str,
    },
}

/// Address, API key and TLS settings of one vLLM server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Base URL without the OpenAI path `/v1`.
    base_url: Url,
    api_key: Option<ApiKey>,
    /// Used only if the scheme is `https`.
    tls: TlsConfig,
}

impl Endpoint {
    /// Parses a base URL like `http://127.0.0.1:8000`. Removes a trailing `/v1`, which other clients require.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let mut url = Url::parse(text)
            .map_err(|error| EndpointError::NotAUrl { text: text.to_owned(), detail: error.to_string() })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(EndpointError::Scheme { text: text.to_owned(), scheme: url.scheme().to_owned() });
        }
        if !url.username().is_empty() || url.password().is_some() {
            // The text may contain a password, so the error shows only the scheme and the host.
            let text = format!("{}://…@{}", url.scheme(), url.host_str().unwrap_or_default());
            return Err(EndpointError::UnexpectedPart { text, part: "a user name or password" });
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(EndpointError::UnexpectedPart { text: text.to_owned(), part: "a query or fragment" });
        }
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        url.set_path(&path);
        Ok(Self { base_url: url, api_key: None, tls: TlsConfig::default() })
    }

    /// Sets the API key that requests carry.
    #[must_use]
    pub fn with_api_key(mut self, api_key: Option<ApiKey>) -> Self {
        self.api_key = api_key;
        self
    }

    /// Sets how the server's certificate is verified. Has no effect on an `http` endpoint.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsConfig) -> Self {
        self.tls = tls;
        self
    }

    /// Returns the base URL without a trailing slash.
    pub fn base_url(&self) -> &str {
        self.base_url.as_str().trim_end_matches('/')
    }

    /// Returns the host, without brackets around an IPv6 address.
    pub fn host(&self) -> &str {
        self.base_url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns the port, or the default of the scheme if the URL names none.
    pub fn port(&self) -> u16 {
        self.base_url.port_or_known_default().unwrap_or(80)
    }

    /// Returns `host:port`, which is the server's name under `rollora local`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.base_url.host_str().unwrap_or_default(), self.port())
    }

    /// Returns whether the scheme is `https`.
    pub fn is_https(&self) -> bool {
        self.base_url.scheme() == "https"
    }

    pub(crate) fn api_key(&self) -> Option<&ApiKey> {
        self.api_key.as_ref()
    }

    pub(crate) fn tls(&self) -> &TlsConfig {
        &self.tls
    }

    /// Returns the URL of a request. Uses the configured server name as host, if there is one, so that the certificate
    /// is verified for that name.
    pub(crate) fn url(&self, path: &str) -> String {
        let mut url = self.base_url.clone();
        if let Some(name) = self.tls.server_name.as_ref().filter(|_| self.is_https()) {
            // Cannot fail: a DNS name is always a valid host.
            url.set_host(Some(&name.to_string())).ok();
        }
        format!("{}{path}", url.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_slash_and_v1_are_removed() {
        for text in
            ["http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/"]
        {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.url("/v1/models"), "http://127.0.0.1:8000/v1/models", "{text}");
            assert_eq!(endpoint.authority(), "127.0.0.1:8000", "{text}");
        }
    }

    #[test]
    fn ports_path_prefixes_and_ipv6_are_parsed() {
        let cases = [
            ("https://vllm.example", "vllm.example", 443, "vllm.example:443", "https://vllm.example/health"),
            (
                "http://vllm.example/pool/a/v1",
                "vllm.example",
                80,
                "vllm.example:80",
                "http://vllm.example/pool/a/health",
            ),
            ("http://[::1]:8000", "::1", 8000, "[::1]:8000", "http://[::1]:8000/health"),
        ];
        for (text, host, port, authority, health) in cases {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(
                (endpoint.host(), endpoint.port(), endpoint.authority().as_str(), endpoint.url("/health").as_str()),
                (host, port, authority, health)
            );
        }
    }

    #[test]
    fn error_of_an_invalid_url_says_what_to_write() {
        for text in ["127.0.0.1:8000", "localhost:8000", "", "ftp://h", "http://h/?a=1", "http://user:secret@h:1"] {
            let error = Endpoint::parse(text).unwrap_err().to_string();
            assert!(error.contains("write it like") || error.contains("give only"), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn debug_output_does_not_contain_the_api_key() {
        let endpoint = Endpoint::parse("http://h:1").unwrap().with_api_key(Some(ApiKey::new("secret\n")));
        assert!(!format!("{endpoint:?}").contains("secret"));
        assert_eq!(endpoint.api_key().unwrap().as_str(), "secret");
    }
}
