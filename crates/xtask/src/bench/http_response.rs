//! A minimal HTTP/1.1 client: reads one response from a keep-alive connection and detects its end.

use std::io::{self, BufRead, Read as _};

/// Longer than any line that the servers of a bench send.
const MAX_LINE_BYTES: u64 = 16 * 1024;

/// A response without its headers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HttpResponse {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// How the length of a body is determined.
enum BodyLength {
    Known(u64),
    Chunked,
}

pub(super) fn read(stream: &mut impl BufRead) -> io::Result<HttpResponse> {
    let status_line = read_line(stream)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| invalid_data(format!("not a status line: {status_line:?}")))?;
    let mut length = None;
    loop {
        let header = read_line(stream)?;
        if header.is_empty() {
            break;
        }
        let (name, value) =
            header.split_once(':').ok_or_else(|| invalid_data(format!("not a header line: {header:?}")))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length =
                Some(BodyLength::Known(value.parse().map_err(|_| invalid_data(format!("invalid length {value:?}")))?));
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            length = Some(BodyLength::Chunked);
        }
    }
    let mut body = Vec::new();
    match length {
        Some(BodyLength::Known(bytes)) => read_exactly(stream, bytes, &mut body)?,
        Some(BodyLength::Chunked) => read_chunked(stream, &mut body)?,
        None => {
            return Err(invalid_data(
                "the response has neither a length nor chunks: the connection cannot be reused".to_owned(),
            ));
        }
    }
    Ok(HttpResponse { status, body })
}

fn read_chunked(stream: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let size = read_line(stream)?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        let bytes =
            u64::from_str_radix(digits, 16).map_err(|_| invalid_data(format!("invalid chunk size {size:?}")))?;
        read_exactly(stream, bytes, body)?;
        // The last chunk may be followed by trailers; every other chunk is followed by an empty line.
        while !read_line(stream)?.is_empty() {}
        if bytes == 0 {
            return Ok(());
        }
    }
}

fn read_exactly(stream: &mut impl BufRead, bytes: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let read = stream.take(bytes).read_to_end(body)?;
    if u64::try_from(read).is_ok_and(|read| read == bytes) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads a line and removes its line ending.
fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    stream.take(MAX_LINE_BYTES).read_line(&mut text)?;
    match text.strip_suffix('\n') {
        Some(line) => Ok(line.strip_suffix('\r').unwrap_or(line).to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid_data(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_end_at_their_length_or_last_chunk() {
        for (text, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi"),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 404, ""),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
                200,
                "hi0123456789",
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n0\r\nx-trailer: 1\r\n\r\n", 200, ""),
        ] {
            let stream = format!("{text}HTTP/1.1 next");
            let mut stream = stream.as_bytes();
            assert_eq!(read(&mut stream).unwrap(), HttpResponse { status, body: body.into() }, "{text}");
            assert_eq!(stream, b"HTTP/1.1 next", "{text}");
        }
    }

    #[test]
    fn truncated_or_unbounded_response_is_an_error() {
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(read(&mut text.as_bytes()).is_err(), "{text}");
        }
    }
}
