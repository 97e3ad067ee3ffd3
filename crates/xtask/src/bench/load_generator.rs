//! A load generator: some keep-alive connections, with one request at a time on each.
//!
//! It is a closed loop: it measures the cost of a request, not the behavior of an overloaded server.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::http_response;
use crate::{clock, process};

/// Longer than any response of a bench takes.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// A request, its destination and the concurrency.
#[derive(Debug)]
pub(super) struct LoadGenerator {
    pub(super) address: SocketAddr,
    /// Head and body, sent unchanged.
    pub(super) request: Vec<u8>,
    pub(super) connections: usize,
}

/// Result of a run. All responses have status 200: any other status ends the run with an error.
#[derive(Debug, Default)]
pub(super) struct LoadResult {
    latencies: Vec<Duration>,
    pub(super) elapsed: Duration,
}

impl LoadResult {
    pub(super) fn request_count(&self) -> usize {
        self.latencies.len()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn requests_per_second(&self) -> f64 {
        self.request_count() as f64 / self.elapsed.as_secs_f64()
    }

    /// Returns the latency that `percent` percent of the requests did not exceed.
    pub(super) fn percentile(&mut self, percent: usize) -> Duration {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).copied().unwrap_or_default()
    }
}

/// Builds a POST request with a JSON body on a keep-alive connection.
pub(super) fn post_request(address: SocketAddr, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

impl LoadGenerator {
    /// Sends requests for `time`.
    pub(super) fn run(&self, time: Duration) -> Result<LoadResult> {
        let start = clock::now();
        let results = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.connections).map(|_| scope.spawn(move || self.run_connection(start + time))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(LoadResult { latencies: results.concat(), elapsed: start.elapsed() })
    }

    /// Sends `rate` requests per second, whether responses are in time or not. If the previous response was late, the
    /// latency of a request counts from the time at which it should have been sent.
    pub(super) fn run_at_rate(&self, rate: f64, time: Duration) -> Result<LoadResult> {
        let start = clock::now();
        let every = Duration::from_secs_f64(1.0 / rate);
        let each = every * u32::try_from(self.connections)?;
        let results = thread::scope(|scope| {
            let first = |index: usize| start + every * u32::try_from(index).unwrap_or_default();
            let threads: Vec<_> = (0..self.connections)
                .map(|index| scope.spawn(move || self.run_paced_connection(first(index), each, start + time)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(LoadResult { latencies: results.concat(), elapsed: start.elapsed() })
    }

    /// Sends one request and returns any response, to check whether a server is up.
    pub(super) fn send_once(&self) -> Result<http_response::HttpResponse> {
        let mut stream = self.connect()?;
        stream.get_mut().write_all(&self.request)?;
        Ok(http_response::read(&mut stream)?)
    }

    fn run_connection(&self, end: Instant) -> Result<Vec<Duration>> {
        let mut stream = self.connect()?;
        let mut latencies = Vec::new();
        while clock::now() < end {
            let start = clock::now();
            self.send_request(&mut stream)?;
            latencies.push(start.elapsed());
        }
        Ok(latencies)
    }

    fn run_paced_connection(&self, first: Instant, each: Duration, end: Instant) -> Result<Vec<Duration>> {
        let mut stream = self.connect()?;
        let mut latencies = Vec::new();
        let mut due = first;
        while due < end {
            let early = due.saturating_duration_since(clock::now());
            thread::sleep(early);
            // Oversleeping does not count as latency of the server.
            let start = if early.is_zero() { due } else { clock::now() };
            self.send_request(&mut stream)?;
            latencies.push(start.elapsed());
            due += each;
        }
        Ok(latencies)
    }

    fn send_request(&self, stream: &mut BufReader<TcpStream>) -> Result<()> {
        process::fail_if_interrupted()?;
        stream.get_mut().write_all(&self.request).context("cannot send a request")?;
        let response = http_response::read(stream).with_context(|| format!("no response from {}", self.address))?;
        if response.status != 200 {
            bail!("{} returned {}: {}", self.address, response.status, String::from_utf8_lossy(&response.body));
        }
        Ok(())
    }

    fn connect(&self) -> Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect_timeout(&self.address, IO_TIMEOUT)
            .with_context(|| format!("cannot connect to {}", self.address))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        Ok(BufReader::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;

    /// Answers every request with the same text, on a limited number of connections.
    fn fake_server(response: &'static str, connections: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().take(connections) {
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut request = vec![0; post_request(address, "/", "{}").len()];
                    while stream.read_exact(&mut request).is_ok() {
                        stream.write_all(response.as_bytes()).unwrap();
                    }
                });
            }
        });
        address
    }

    #[test]
    fn connections_are_reused_and_all_requests_counted() {
        // Further connections are never answered, so this ends only if connections are reused.
        let address = fake_server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 2);
        let load = LoadGenerator { address, request: post_request(address, "/", "{}"), connections: 2 };
        let mut result = load.run(Duration::from_millis(200)).unwrap();
        assert!(result.request_count() > 10, "{}", result.request_count());
        assert!(result.requests_per_second() > 50.0);
        assert!(result.percentile(50) <= result.percentile(99));
    }

    #[test]
    fn request_rate_is_kept() {
        let address = fake_server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 2);
        let load = LoadGenerator { address, request: post_request(address, "/", "{}"), connections: 2 };
        let result = load.run_at_rate(100.0, Duration::from_millis(300)).unwrap();
        assert_eq!(result.request_count(), 30);
        assert!(result.elapsed >= Duration::from_millis(280));
    }

    #[test]
    fn error_status_ends_the_run_with_its_body() {
        let address = fake_server("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope", 1);
        let load = LoadGenerator { address, request: post_request(address, "/", "{}"), connections: 1 };
        let message = load.run(Duration::from_secs(5)).unwrap_err().to_string();
        assert!(message.ends_with("returned 404: nope"), "{message}");
    }
}
