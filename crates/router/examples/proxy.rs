//! Minimal proxy on threads and sockets of the standard library: `proxy LISTEN UPSTREAM`, for example `cargo run -p
//! rollora-router --example proxy 127.0.0.1:8080 127.0.0.1:8000`.
//!
//! Routes requests for `alias` to `alias-v1` and `alias-v2` in equal shares and restores the name `alias` in responses,
//! including event streams while they arrive. It supports only requests with a `content-length` and one request per
//! connection: enough to show in which order a proxy calls the library.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use rollora_router::{
    active_rules::ActiveRules,
    exchange::{BodyAction, Exchange, HeadAction, RequestHead},
    guard::PathGuard,
    headers,
    refusal::{self, RequestRefusal},
};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream] = &arguments[..] else { return Err(io::Error::other("usage: proxy LISTEN UPSTREAM")) };
    let upstream = upstream.parse().map_err(io::Error::other)?;
    serve(&TcpListener::bind(listen)?, upstream, &active_rules()?)
}

fn active_rules() -> io::Result<Arc<ActiveRules>> {
    let rewrite: InferenceModelRewrite = serde_json::from_str(
        r#"{
            "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite",
            "metadata": { "name": "alias", "uid": "1" },
            "spec": { "poolRef": { "name": "pool" }, "rules": [{
                "matches": [{ "model": { "value": "alias" } }],
                "targets": [{ "modelRewrite": "alias-v1", "weight": 1 }, { "modelRewrite": "alias-v2", "weight": 1 }]
            }] }
        }"#,
    )?;
    let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
    let active_rules = Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current]));
    active_rules.reset(&[rewrite]);
    Ok(active_rules)
}

fn serve(listener: &TcpListener, upstream: SocketAddr, active_rules: &Arc<ActiveRules>) -> io::Result<()> {
    for client in listener.incoming() {
        let (client, active_rules) = (client?, Arc::clone(active_rules));
        thread::spawn(move || {
            if let Err(error) = proxy_request(&client, upstream, &active_rules) {
                eprintln!("{error}");
            }
        });
    }
    Ok(())
}

/// The clock of the program; the library has none.
#[expect(clippy::disallowed_methods, reason = "a program, not the library")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Proxies one request and its response.
fn proxy_request(mut client: &TcpStream, upstream: SocketAddr, active_rules: &Arc<ActiveRules>) -> io::Result<()> {
    let mut from_client = BufReader::new(client);
    let (line, mut request) = read_head(&mut from_client)?;
    let path_and_query = line.split(' ').nth(1).unwrap_or("/").to_owned();
    headers::remove_internal(&mut request);
    let length = parse_number(&request, &header::CONTENT_LENGTH).unwrap_or(0);
    let head = RequestHead { path_and_query: &path_and_query, headers: &request, has_body: length > 0 };
    let (mut exchange, action) = Exchange::begin(active_rules, PathGuard::Strict, &head, now());
    // Read the body even if the request is refused: closing a connection with unread data resets it, and the client
    // loses the response.
    let mut body = vec![0; length];
    from_client.read_exact(&mut body)?;
    if let HeadAction::Refuse(refusal) = action {
        return refuse(client, &refusal);
    }
    let mut body = Bytes::from(body);
    if action == HeadAction::ReadBody {
        match exchange.request_body(&body, rand::random(), now()) {
            BodyAction::Forward => {}
            BodyAction::Replace(spliced) => body = spliced.into_bytes(),
            BodyAction::Refuse(refusal) => return refuse(client, &refusal),
        }
    }
    request.insert(header::CONTENT_LENGTH, body.len().into());
    let server = TcpStream::connect(upstream)?;
    write_head(&server, &line, request)?;
    (&server).write_all(&body)?;

    let mut from_server = BufReader::new(&server);
    let (line, mut response) = read_head(&mut from_server)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(StatusCode::BAD_GATEWAY);
    headers::set_target_header(&mut response, exchange.response_head(status, now()).as_ref());
    // A chunked body would have to be decoded first.
    let is_plain = !response.contains_key(header::TRANSFER_ENCODING);
    let mut restorer = exchange.restorer(&response).filter(|_| is_plain);
    if restorer.is_some() {
        // The restored name can have another length, so the end of the connection ends the body.
        response.remove(header::CONTENT_LENGTH);
    }
    write_head(client, &line, response)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from_server.read(&mut buffer)?;
        let read = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
        let mut out = Vec::new();
        match &mut restorer {
            Some(restorer) if length == 0 => restorer.finish(&mut out),
            Some(restorer) => restorer.push(&read, &mut out),
            None => out.push(read),
        }
        client.write_all(&out.concat())?;
        if length == 0 {
            exchange.end(now());
            return Ok(());
        }
    }
}

fn refuse(mut client: &TcpStream, refusal: &RequestRefusal) -> io::Result<()> {
    let (status, body) = (refusal.status(), refusal.body());
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {}\r\ncontent-length: ", refusal::CONTENT_TYPE);
    write!(client, "{head}{}\r\nconnection: close\r\n\r\n", body.len())?;
    client.write_all(&body)
}

/// Reads the start line and the headers.
fn read_head(from: &mut impl BufRead) -> io::Result<(String, HeaderMap)> {
    let mut lines = from.lines().take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { continue };
        let name: HeaderName = name.parse().map_err(io::Error::other)?;
        headers.append(name, HeaderValue::from_str(value.trim()).map_err(io::Error::other)?);
    }
    Ok((first, headers))
}

fn write_head(mut to: &TcpStream, line: &str, mut headers: HeaderMap) -> io::Result<()> {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut head = format!("{line}\r\n").into_bytes();
    for (name, value) in &headers {
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    to.write_all(&head)
}

fn parse_number(headers: &HeaderMap, name: &HeaderName) -> Option<usize> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a request through the proxy to a server that echoes the body as an event. Returns the response that the
    /// client gets.
    fn send_through_proxy(path: &str, body: &str) -> String {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = server.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut from = BufReader::new(stream.try_clone().unwrap());
            let (_, headers) = read_head(&mut from).unwrap();
            let mut body = vec![0; parse_number(&headers, &header::CONTENT_LENGTH).unwrap()];
            from.read_exact(&mut body).unwrap();
            let event = format!("data: {}\n\n", String::from_utf8(body).unwrap());
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{event}").unwrap();
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap();
        let rules = active_rules().unwrap();
        thread::spawn(move || serve(&listener, upstream, &rules));
        let mut client = TcpStream::connect(proxy).unwrap();
        write!(client, "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        response
    }

    #[test]
    fn alias_is_rewritten_and_restored() {
        let response = send_through_proxy("/v1/completions", r#"{"prompt":"alias", "model" : "alias"}"#);
        assert!(response.contains("x-rollora-target: alias-v"), "{response}");
        assert!(response.ends_with("data: {\"prompt\":\"alias\", \"model\" : \"alias\"}\n\n"), "{response}");
    }

    #[test]
    fn other_names_pass_and_closed_paths_are_refused() {
        let response = send_through_proxy("/v1/completions", r#"{"model":"other"}"#);
        assert!(response.ends_with("data: {\"model\":\"other\"}\n\n") && !response.contains("x-rollora"), "{response}");
        let response = send_through_proxy("/v1/load_lora_adapter", "{}");
        assert!(response.starts_with("HTTP/1.1 403"), "{response}");
    }
}
