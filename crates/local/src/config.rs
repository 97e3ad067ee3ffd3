//! Start parameters of `rollora local`.

use crate::document_store::InputFiles;
use rollora_vllm::{Endpoint, EndpointError};
use std::{net::SocketAddr, path::PathBuf};

/// Start parameters of [`run`](crate::run).
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Paths of the Rollout file and the adapters file.
    pub inputs: InputFiles,
    /// The vLLM servers. Their API key is used only for Rollora's own calls; clients send their own key.
    pub servers: Vec<Endpoint>,
    /// Address where the gateway accepts client requests.
    pub listen: SocketAddr,
    /// Path of the state folder, which is created if absent.
    pub state: PathBuf,
    /// Address of the HTTP server for `/metrics`, `/rules` and `/readyz`. `None` if they are not served.
    pub status_listen: Option<SocketAddr>,
    /// Maximum size of a request body, in bytes.
    pub max_body: usize,
}

/// Why a text is not the URL of a vLLM server behind the gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerUrlError {
    /// The text is not the URL of a server.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The scheme is `https`, which the gateway does not speak to servers.
    #[error("the gateway speaks plain HTTP to its servers: give the http:// address of the server")]
    Tls,
    /// The URL has a path.
    #[error("the URL of a server has scheme, host and port only: leave out the path")]
    Path,
}

/// Parses the URL of a vLLM server: `http://`, host and optional port. A final `/` or `/v1` is ignored.
pub fn parse_server_url(text: &str) -> Result<Endpoint, ServerUrlError> {
    let endpoint = Endpoint::parse(text)?;
    if endpoint.is_https() {
        return Err(ServerUrlError::Tls);
    }
    let bare = endpoint.base_url().matches('/').count() == 2;
    if bare { Ok(endpoint) } else { Err(ServerUrlError::Path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_urls_are_parsed_or_rejected_with_a_reason() {
        for (text, expected) in [
            ("http://127.0.0.1:8000", Ok("127.0.0.1:8000")),
            ("http://localhost:8000/", Ok("localhost:8000")),
            ("http://localhost:8000/v1", Ok("localhost:8000")),
            ("http://gpu-box", Ok("gpu-box:80")),
            ("http://[::1]:8000", Ok("[::1]:8000")),
            ("https://127.0.0.1:8000", Err("plain HTTP")),
            ("127.0.0.1:8000", Err("not a URL")),
            ("http://127.0.0.1:8000/llm", Err("leave out the path")),
        ] {
            match (parse_server_url(text), expected) {
                (Ok(endpoint), Ok(name)) => assert_eq!(endpoint.authority(), name),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }
}
