//! Loopback ports that stay ours while nobody listens on them: a server that is killed and started again comes back on
//! its port, and no test that runs beside takes it meanwhile.
//!
//! The ports lie below the range that the system gives out for port 0 and for outgoing connections. Each is reserved by
//! a lock on a file, which the system lets go of however the process ends. Nothing keeps a program that does not ask
//! here from such a port; one that is in use is passed over.

use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

const FIRST_PORT: u16 = 20_000;
const PORT_COUNT: u16 = 10_000;

/// A reserved port.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    _lock: File,
}

impl ReservedPort {
    /// Reserves a free port until the value is dropped.
    pub fn reserve() -> Result<Self> {
        let folder = lock_dir()?;
        // Processes begin at different places, so that they seldom meet.
        let start = u16::try_from(std::process::id() * 61 % u32::from(PORT_COUNT)).unwrap_or_default();
        for step in 0..PORT_COUNT {
            let number = FIRST_PORT + (start + step) % PORT_COUNT;
            if let Some(port) = Self::try_reserve(&folder, number)? {
                return Ok(port);
            }
        }
        bail!("no port from {FIRST_PORT} to {} is free", FIRST_PORT + (PORT_COUNT - 1))
    }

    fn try_reserve(folder: &Path, number: u16) -> Result<Option<Self>> {
        let path = folder.join(number.to_string());
        let lock = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        if lock.try_lock().is_err() || TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_err() {
            return Ok(None);
        }
        Ok(Some(Self { number, _lock: lock }))
    }

    /// The number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The port on 127.0.0.1.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

pub(crate) fn lock_dir() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("rollora-ports-{}", rustix::process::getuid().as_raw()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_reserved_twice() {
        let ports: Vec<_> = (0..20).map(|_| ReservedPort::reserve().unwrap()).collect();
        let mut numbers: Vec<_> = ports.iter().map(ReservedPort::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
    }

    #[test]
    fn a_port_that_is_in_use_is_passed_over() {
        let port = ReservedPort::reserve().unwrap();
        let number = port.number();
        drop(port);
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
        assert!(ReservedPort::try_reserve(&lock_dir().unwrap(), number).unwrap().is_none());
    }
}
