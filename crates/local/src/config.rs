//! What a `rollora local` is started with.

use crate::document_store::InputFiles;
use rollora_vllm::{Endpoint, EndpointError};
use std::{net::SocketAddr, path::PathBuf};

/// Everything that is given at the start.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The two files that a person edits.
    pub inputs: InputFiles,
    /// The vLLM servers, with the key for what Rollora itself asks of them. Clients bring their own.
    pub servers: Vec<Endpoint>,
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// The state folder.
    pub state: PathBuf,
    /// Where `/metrics`, `/rules` and `/readyz` are served.
    pub status_listen: Option<SocketAddr>,
    /// The longest request body.
    pub max_body: usize,
}

/// Why a text cannot be one of the servers of this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerUrlError {
    /// Not the URL of a server.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Not plain HTTP.
    #[error("the gateway speaks plain HTTP to its servers: give the http:// address of the server")]
    Tls,
    /// More than host and port.
    #[error("a server is named by scheme, host and port alone: leave out the path")]
    Path,
}

/// Reads the URL of a server.
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
    fn urls_of_servers_and_what_is_wrong_with_others() {
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
                (Err(error), Err(said)) => assert!(error.to_string().contains(said), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }
}
