//! Pod addresses from 127.0.0.0/8: on Linux the loopback device has the whole range, and any process may bind any of
//! its addresses. A testbed has 127.X.Y.0/24 to itself, reserved by a file lock, which the kernel releases however the
//! process ends.

use crate::ports::lock_dir;
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeSet,
    fs::File,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

/// The subnets: 127.64.0 to 127.127.255, away from addresses that people write by hand.
const FIRST_SUBNET: u32 = 64 * 256;
const SUBNET_COUNT: u32 = 64 * 256;

/// The subnet of one testbed.
#[derive(Debug)]
pub(super) struct LoopbackSubnet {
    network: [u8; 3],
    allocated: Mutex<Allocations>,
    _lock: File,
}

#[derive(Debug, Default)]
struct Allocations {
    in_use: BTreeSet<u8>,
    last: u8,
}

/// The address of one pod, released when it is dropped.
#[derive(Debug)]
pub(super) struct PodIp {
    subnet: Arc<LoopbackSubnet>,
    host: u8,
}

impl LoopbackSubnet {
    /// Reserves a subnet until it and all of its addresses are dropped.
    pub(super) fn reserve() -> Result<Arc<Self>> {
        let folder = lock_dir()?;
        // Each process starts at a different subnet to avoid collisions.
        let start = std::process::id() * 61 % SUBNET_COUNT;
        for step in 0..SUBNET_COUNT {
            let [_, _, high, low] = (FIRST_SUBNET + (start + step) % SUBNET_COUNT).to_be_bytes();
            let path = folder.join(format!("127.{high}.{low}"));
            let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            if lock.try_lock().is_ok() {
                return Ok(Arc::new(Self { network: [127, high, low], allocated: Mutex::default(), _lock: lock }));
            }
        }
        bail!("no loopback subnet is free: all are locked in {}", folder.display())
    }

    /// Allocates an address that no other pod has; a released address is reused as late as possible.
    pub(super) fn allocate(self: &Arc<Self>) -> Result<PodIp> {
        let mut allocations = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates = (allocations.last.saturating_add(1)..=254).chain(1..=allocations.last.min(254));
        let host = candidates.into_iter().find(|host| *host != 0 && !allocations.in_use.contains(host));
        let host = host.context("all addresses of the testbed's loopback subnet are in use")?;
        allocations.last = host;
        allocations.in_use.insert(host);
        drop(allocations);
        Ok(PodIp { subnet: Arc::clone(self), host })
    }
}

impl PodIp {
    pub(super) fn ip(&self) -> Ipv4Addr {
        let [a, b, c] = self.subnet.network;
        Ipv4Addr::new(a, b, c, self.host)
    }
}

impl Drop for PodIp {
    fn drop(&mut self) {
        self.subnet.allocated.lock().unwrap_or_else(PoisonError::into_inner).in_use.remove(&self.host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn allocated_addresses_are_unique_and_can_be_bound() {
        let (one, two) = (LoopbackSubnet::reserve().unwrap(), LoopbackSubnet::reserve().unwrap());
        let addresses: Vec<_> = [&one, &two, &one, &two].into_iter().map(|block| block.allocate().unwrap()).collect();
        let different: BTreeSet<_> = addresses.iter().map(PodIp::ip).collect();
        assert_eq!(different.len(), addresses.len());
        for ip in different {
            TcpListener::bind((ip, 0)).unwrap();
        }
    }

    #[test]
    fn released_address_is_reused_last() {
        let block = LoopbackSubnet::reserve().unwrap();
        let first = block.allocate().unwrap().ip();
        let others: Vec<_> = (1..254).map(|_| block.allocate().unwrap()).collect();
        assert!(others.iter().all(|other| other.ip() != first));
        assert_eq!(block.allocate().unwrap().ip(), first);
    }

    #[test]
    fn allocation_fails_when_all_addresses_are_in_use() {
        let block = LoopbackSubnet::reserve().unwrap();
        let all: Vec<_> = (0..254).map(|_| block.allocate().unwrap()).collect();
        assert_eq!(all.len(), 254);
        block.allocate().unwrap_err();
    }
}
