//! Raw HTTP/2 frames, to send what no client library sends: many streams that are reset before the server processes
//! them.

use crate::proto::HEALTH_CHECK_PATH;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Encodes the headers of a call without using HPACK's dynamic table.
fn headers() -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // POST, http, then literals with the names :path, :authority and content-type of the static table.
    let parts = [
        vec![0x83, 0x86, 0x04],
        text(HEALTH_CHECK_PATH),
        vec![0x01],
        text("server"),
        vec![0x0f, 0x10],
        text("application/grpc"),
    ];
    parts.concat()
}

/// Starts `calls` calls, resets them all, then sends a health request. Returns whether the server responds to it.
pub(super) async fn responds_after_resets(server: SocketAddr, calls: u32) -> bool {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    for call in 0..calls {
        let stream = 1 + 2 * call;
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &headers()));
        bytes.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    let last = 1 + 2 * calls;
    bytes.extend(frame(HEADERS, END_HEADERS, last, &headers()));
    bytes.extend(frame(DATA, END_STREAM, last, &[0; 5]));
    let mut connection = TcpStream::connect(server).await.unwrap();
    connection.write_all(&bytes).await.unwrap();
    loop {
        let mut head = [0; 9];
        if connection.read_exact(&mut head).await.is_err() {
            return false;
        }
        let [a, b, c, kind, _, stream @ ..] = head;
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap()];
        connection.read_exact(&mut payload).await.unwrap();
        match (kind, u32::from_be_bytes(stream)) {
            (HEADERS, stream) if stream == last => return true,
            (GOAWAY, _) => return false,
            _ => {}
        }
    }
}
