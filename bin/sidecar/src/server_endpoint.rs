//! Which server: what the command line says of it, and what the file does. Pure.

use rollora_api::adapters::AdaptersFile;
use rollora_vllm::{ApiKey, Endpoint, TlsConfig};

/// Where lora-syncer looked for vLLM when the file did not say.
const DEFAULT_HOST: &str = "localhost";
const DEFAULT_PORT: u16 = 8000;

/// A server and the key that it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerEndpoint(Endpoint);

impl ServerEndpoint {
    /// The server that `file` means; `host` goes over the file's. Without a file it is where it would be by default.
    /// With `tls` it is asked over TLS.
    pub(crate) fn new(file: Option<&AdaptersFile>, host: Option<&str>, tls: Option<TlsConfig>) -> Result<Self, String> {
        let said = file.and_then(|file| file.host.as_deref()).filter(|host| !host.is_empty());
        let host = host.or(said).unwrap_or(DEFAULT_HOST);
        let port = file.and_then(|file| file.port).unwrap_or(DEFAULT_PORT);
        let shown = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let refused = || {
            format!("the host `{host}` cannot be vLLM's: write a name or an address alone, like localhost or 127.0.0.1")
        };
        if host.contains(['/', '@', '?', '#', '\\']) || port == 0 {
            return Err(if port == 0 {
                "the port 0 cannot be vLLM's: write it, like 8000".to_owned()
            } else {
                refused()
            });
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::parse(&format!("{scheme}://{shown}:{port}")).map_err(|_| refused())?;
        Ok(Self(endpoint.with_tls(tls.unwrap_or_default())))
    }

    /// The same server, asked with this key.
    pub(crate) fn with_key(self, key: Option<ApiKey>) -> Self {
        Self(self.0.with_api_key(key))
    }

    /// Whether this is the same server, whatever is needed to ask it.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        self.0.base_url() == other.0.base_url()
    }

    /// As the library wants it.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_over_the_file_and_the_file_over_what_is_usual() {
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
    fn what_cannot_be_a_server_is_refused_with_an_example() {
        for host in ["http://vllm", "a b", "user@host", "vllm:8000", "vllm/v1", "a?b"] {
            let error = ServerEndpoint::new(None, Some(host), None).unwrap_err();
            assert!(error.contains(host) && error.contains("like localhost"), "{host}: {error}");
        }
        let file = AdaptersFile { port: Some(0), ..AdaptersFile::default() };
        assert!(ServerEndpoint::new(Some(&file), None, None).unwrap_err().contains("like 8000"));
    }
}
