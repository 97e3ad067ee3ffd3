//! The endpoint of vLLM, from the command line and the adapters file. Pure.

use rollora_api::adapters::AdaptersFile;
use rollora_vllm::{ApiKey, Endpoint, TlsConfig};

/// The host that lora-syncer used if the file named none.
const DEFAULT_HOST: &str = "localhost";
const DEFAULT_PORT: u16 = 8000;

/// The vLLM server that flags and file mean, with its API key and TLS settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerEndpoint(Endpoint);

impl ServerEndpoint {
    /// Returns the server that `file` names; `host` overrides the file's. Without a file, the default host and port
    /// apply. With `tls`, the scheme is `https`.
    pub(crate) fn new(file: Option<&AdaptersFile>, host: Option<&str>, tls: Option<TlsConfig>) -> Result<Self, String> {
        let file_host = file.and_then(|file| file.host.as_deref()).filter(|host| !host.is_empty());
        let host = host.or(file_host).unwrap_or(DEFAULT_HOST);
        let port = file.and_then(|file| file.port).unwrap_or(DEFAULT_PORT);
        let bracketed =
            if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let invalid_host =
            || format!("the host `{host}` is not valid: write only a name or an address, like localhost or 127.0.0.1");
        if host.contains(['/', '@', '?', '#', '\\']) || port == 0 {
            return Err(if port == 0 {
                "the port 0 is not valid: write the port of vLLM, like 8000".to_owned()
            } else {
                invalid_host()
            });
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::parse(&format!("{scheme}://{bracketed}:{port}")).map_err(|_| invalid_host())?;
        Ok(Self(endpoint.with_tls(tls.unwrap_or_default())))
    }

    /// Sets the API key of the server.
    pub(crate) fn with_key(self, key: Option<ApiKey>) -> Self {
        Self(self.0.with_api_key(key))
    }

    /// Whether both are the same server, regardless of API key and trusted CAs.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        self.0.base_url() == other.0.base_url()
    }

    /// Returns the endpoint for the client library.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_override_the_file_and_the_file_overrides_defaults() {
        let file =
            |host: Option<&str>, port| AdaptersFile { host: host.map(str::to_owned), port, ..Default::default() };
        for (file, host, expected) in [
            (None, None, "http://localhost:8000"),
            (None, Some("10.0.0.1"), "http://10.0.0.1:8000"),
            (Some(file(None, None)), None, "http://localhost:8000"),
            (Some(file(Some(""), None)), None, "http://localhost:8000"),
            (Some(file(Some("vllm"), Some(8001))), None, "http://vllm:8001"),
            (Some(file(Some("vllm"), Some(8001))), Some("127.0.0.2"), "http://127.0.0.2:8001"),
            (Some(file(Some("::1"), None)), None, "http://[::1]:8000"),
            (Some(file(Some("[::1]"), None)), None, "http://[::1]:8000"),
        ] {
            assert_eq!(ServerEndpoint::new(file.as_ref(), host, None).unwrap().endpoint().base_url(), expected);
        }
        let file = file(Some("vllm"), Some(443));
        let secure = ServerEndpoint::new(Some(&file), None, Some(TlsConfig::default())).unwrap();
        assert_eq!((secure.endpoint().base_url(), secure.endpoint().port()), ("https://vllm", 443));
    }

    #[test]
    fn invalid_endpoint_is_rejected_with_an_example() {
        for host in ["http://vllm", "a b", "user@host", "vllm:8000", "vllm/v1", "a?b"] {
            let error = ServerEndpoint::new(None, Some(host), None).unwrap_err();
            assert!(error.contains(host) && error.contains("like localhost"), "{host}: {error}");
        }
        let file = AdaptersFile { port: Some(0), ..AdaptersFile::default() };
        assert!(ServerEndpoint::new(Some(&file), None, None).unwrap_err().contains("like 8000"));
    }
}
