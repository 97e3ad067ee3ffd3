//! One idle connection to the server: when it closes, the server has probably ended, and this is known before any
//! poll could tell.

use std::{io, time::Duration};
use tokio::net::TcpStream;

/// Connects, and says nothing.
pub(crate) async fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(connection) => connection,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Waits for the other side to close.
pub(crate) async fn wait_closed(connection: &TcpStream) {
    let mut bytes = [0; 64];
    loop {
        let read = match connection.readable().await {
            Ok(()) => connection.try_read(&mut bytes),
            Err(error) => Err(error),
        };
        match read {
            Ok(0) => return,
            // A server that speaks first: not ours to understand.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
