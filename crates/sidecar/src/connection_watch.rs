//! One idle connection to the server. When it closes, the server has probably ended, which shows earlier than by a
//! poll.

use std::{io, time::Duration};
use tokio::net::TcpStream;

/// Connects without sending anything.
pub(crate) async fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(connection) => connection,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Waits until the server closes the connection.
pub(crate) async fn wait_closed(connection: &TcpStream) {
    let mut bytes = [0; 64];
    loop {
        let read = match connection.readable().await {
            Ok(()) => connection.try_read(&mut bytes),
            Err(error) => Err(error),
        };
        match read {
            Ok(0) => return,
            // No request was sent: whatever the server sends is ignored.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
