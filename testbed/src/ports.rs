//! Loopback ports that stay reserved while nothing listens on them: a server that is killed and restarted gets its port
//! back, and no test that runs at the same time takes it meanwhile.
//!
//! The ports are below the range that the kernel uses for port 0 and for outgoing connections. Each is reserved by a
//! file lock, which the kernel releases however the process ends. Programs that do not use this module can still bind
//! such a port; a port in use is skipped.

use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

const FIRST_PORT: u16 = 20_000;
const PORT_COUNT: u16 = 10_000;

/// A port of 127.0.0.1, reserved until the value is dropped.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    _lock: File,
}

impl ReservedPort {
    /// Reserves a free port from 20000 to 29999.
    pub fn reserve() -> Result<Self> {
        let folder = lock_dir()?;
        // Each process starts at a different port to avoid collisions.
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
        let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if lock.try_lock().is_err() || TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_err() {
            return Ok(None);
        }
        Ok(Some(Self { number, _lock: lock }))
    }

    /// Returns the port number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Returns the port's address on 127.0.0.1.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

pub(crate) fn lock_dir() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("rollora-ports-{}", rustix::process::getuid().as_raw()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_unique() {
        let ports: Vec<_> = (0..20).map(|_| ReservedPort::reserve().unwrap()).collect();
        let mut numbers: Vec<_> = ports.iter().map(ReservedPort::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
    }

    #[test]
    fn port_in_use_is_skipped() {
        let port = ReservedPort::reserve().unwrap();
        let number = port.number();
        drop(port);
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
        assert!(ReservedPort::try_reserve(&lock_dir().unwrap(), number).unwrap().is_none());
    }
}
