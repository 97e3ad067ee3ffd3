//! Where a vLLM server is, and the key that it asks for.

use crate::{TlsConfig, VllmClientError};
use reqwest::header::HeaderValue;
use std::fmt;
use url::Url;

/// The key that vLLM was started with (`--api-key`). Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key; surrounding white space, such as the newline at the end of a file, is no part of it.
    pub fn new(key: &str) -> Self {
        Self(key.trim().to_owned())
    }

    /// A key that can be sent in a header; no other comes through.
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

/// Why a URL cannot be a vLLM server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL at all.
    #[error("`{text}` is not a URL ({detail}): write it like http://127.0.0.1:8000")]
    NotAUrl {
        /// What was written.
        text: String,
        /// What the parser said.
        detail: String,
    },
    /// A URL of another kind.
    #[error("`{text}` has the scheme `{scheme}`: vLLM speaks http or https, write it like http://127.0.0.1:8000")]
    Scheme {
        /// What was written.
        text: String,
        /// Its scheme.
        scheme: String,
    },
    /// Parts that a server's base address cannot have.
    #[error("`{text}` has {part}: give only scheme, host and port, like http://127.0.0.1:8000")]
    UnexpectedPart {
        /// What was written, without a password.
        text: String,
        /// Which part is too much.
        part: &'static str,
    },
}

/// One vLLM server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its base URL; without the OpenAI path `/v1`.
    base_url: Url,
    /// The key that it asks for.
    api_key: Option<ApiKey>,
    /// Whom it is trusted through, where it speaks TLS.
    tls: TlsConfig,
}

impl Endpoint {
    /// Reads a base URL like `http://127.0.0.1:8000`. A trailing `/v1`, which other clients want, is taken off.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let mut url = Url::parse(text)
            .map_err(|error| EndpointError::NotAUrl { text: text.to_owned(), detail: error.to_string() })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(EndpointError::Scheme { text: text.to_owned(), scheme: url.scheme().to_owned() });
        }
        if !url.username().is_empty() || url.password().is_some() {
            // The text may hold a password: only what is safe to print goes into the error.
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

    /// The same server, asked with this key.
    #[must_use]
    pub fn with_api_key(mut self, api_key: Option<ApiKey>) -> Self {
        self.api_key = api_key;
        self
    }

    /// The same server, trusted like this where it speaks TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsConfig) -> Self {
        self.tls = tls;
        self
    }

    /// The base URL, without a slash at its end.
    pub fn base_url(&self) -> &str {
        self.base_url.as_str().trim_end_matches('/')
    }

    /// Its host, without brackets around an IPv6 address.
    pub fn host(&self) -> &str {
        self.base_url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.base_url.port_or_known_default().unwrap_or(80)
    }

    /// `host:port`, which is the server's name where it stands alone on a machine.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.base_url.host_str().unwrap_or_default(), self.port())
    }

    /// Whether TLS is spoken.
    pub fn is_https(&self) -> bool {
        self.base_url.scheme() == "https"
    }

    pub(crate) fn api_key(&self) -> Option<&ApiKey> {
        self.api_key.as_ref()
    }

    pub(crate) fn tls(&self) -> &TlsConfig {
        &self.tls
    }

    /// Where a request is sent. Where the certificate is for another name, that name is asked for.
    pub(crate) fn url(&self, path: &str) -> String {
        let mut url = self.base_url.clone();
        if let Some(name) = self.tls.server_name.as_ref().filter(|_| self.is_https()) {
            // A DNS name is always a host.
            url.set_host(Some(&name.to_string())).ok();
        }
        format!("{}{path}", url.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_ways_to_write_a_server_mean_the_same() {
        for text in
            ["http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/"]
        {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.url("/v1/models"), "http://127.0.0.1:8000/v1/models", "{text}");
            assert_eq!(endpoint.authority(), "127.0.0.1:8000", "{text}");
        }
    }

    #[test]
    fn ports_prefixes_and_ipv6_are_understood() {
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
    fn what_is_no_server_is_refused_with_a_fix() {
        for text in ["127.0.0.1:8000", "localhost:8000", "", "ftp://h", "http://h/?a=1", "http://user:secret@h:1"] {
            let error = Endpoint::parse(text).unwrap_err().to_string();
            assert!(error.contains("write it like") || error.contains("give only"), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_key_is_never_printed() {
        let endpoint = Endpoint::parse("http://h:1").unwrap().with_api_key(Some(ApiKey::new("secret\n")));
        assert!(!format!("{endpoint:?}").contains("secret"));
        assert_eq!(endpoint.api_key().unwrap().as_str(), "secret");
    }
}
