//! A load generator: some connections that are kept, one request at a time on each, for some time.
//!
//! Closed loop: it finds what a request costs, not how a server behaves when more comes than it can do.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::http_response;
use crate::{clock, process};

/// Longer than any answer of a bench should take.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// What is sent, where to, and how.
#[derive(Debug)]
pub(super) struct LoadGenerator {
    pub(super) address: SocketAddr,
    /// Head and body, sent as it is.
    pub(super) request: Vec<u8>,
    pub(super) connections: usize,
}

/// What a run of a load has seen. Every answer was a 200: one that is not ends the run with an error.
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

    /// The time that this part of a hundred was not above.
    pub(super) fn percentile(&mut self, percent: usize) -> Duration {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).copied().unwrap_or_default()
    }
}

/// A POST of JSON that asks to keep the connection.
pub(super) fn post_request(address: SocketAddr, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

impl LoadGenerator {
    /// Sends for this long.
    pub(super) fn run(&self, time: Duration) -> Result<LoadResult> {
        let start = clock::now();
        let seen = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.connections).map(|_| scope.spawn(move || self.run_connection(start + time))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(LoadResult { latencies: seen.concat(), elapsed: start.elapsed() })
    }

    /// Sends this many a second, whether answers come in time or not: a latency counts from when its request should
    /// have been sent, where the answer before it was late.
    pub(super) fn run_at_rate(&self, rate: f64, time: Duration) -> Result<LoadResult> {
        let start = clock::now();
        let every = Duration::from_secs_f64(1.0 / rate);
        let each = every * u32::try_from(self.connections)?;
        let seen = thread::scope(|scope| {
            let first = |index: usize| start + every * u32::try_from(index).unwrap_or_default();
            let threads: Vec<_> = (0..self.connections)
                .map(|index| scope.spawn(move || self.run_paced_connection(first(index), each, start + time)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(LoadResult { latencies: seen.concat(), elapsed: start.elapsed() })
    }

    /// One request, whatever its answer: to see whether a server is there.
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
            // What the sleep was too long is not the server's.
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
        let answer = http_response::read(stream).with_context(|| format!("no answer from {}", self.address))?;
        if answer.status != 200 {
            bail!("{} answered {}: {}", self.address, answer.status, String::from_utf8_lossy(&answer.body));
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

    /// Answers every request on one connection after another with the same text, as long as there are connections.
    fn fake_server(answer: &'static str, connections: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().take(connections) {
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut request = vec![0; post_request(address, "/", "{}").len()];
                    while stream.read_exact(&mut request).is_ok() {
                        stream.write_all(answer.as_bytes()).unwrap();
                    }
                });
            }
        });
        address
    }

    #[test]
    fn connections_are_kept_and_every_request_is_counted() {
        // More connections than these two are never answered: keeping them is what makes this end.
        let address = fake_server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 2);
        let load = LoadGenerator { address, request: post_request(address, "/", "{}"), connections: 2 };
        let mut seen = load.run(Duration::from_millis(200)).unwrap();
        assert!(seen.request_count() > 10, "{}", seen.request_count());
        assert!(seen.requests_per_second() > 50.0);
        assert!(seen.percentile(50) <= seen.percentile(99));
    }

    #[test]
    fn a_pace_is_kept() {
        let address = fake_server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 2);
        let load = LoadGenerator { address, request: post_request(address, "/", "{}"), connections: 2 };
        let seen = load.run_at_rate(100.0, Duration::from_millis(300)).unwrap();
        assert_eq!(seen.request_count(), 30);
        assert!(seen.elapsed >= Duration::from_millis(280));
    }

    #[test]
    fn an_answer_that_is_not_a_success_ends_the_run_with_its_text() {
        let address = fake_server("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope", 1);
        let load = LoadGenerator { address, request: post_request(address, "/", "{}"), connections: 1 };
        let words = load.run(Duration::from_secs(5)).unwrap_err().to_string();
        assert!(words.ends_with("answered 404: nope"), "{words}");
    }
}
