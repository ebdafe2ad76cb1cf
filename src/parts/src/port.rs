//! Ports for servers that are about to start.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;

/// Where they are looked for: below the ports that systems give to outgoing connections, one of which could have it before
/// the server has.
const RANGE: Range<u16> = 10_000..32_000;
/// How many are looked at.
const LOOKS: usize = 1_000;

/// A port on 127.0.0.1 that nobody has at this moment, neither for TCP nor for UDP.
pub fn free_port() -> io::Result<u16> {
    let is_free = |port: &u16| {
        let address = (Ipv4Addr::LOCALHOST, *port);
        TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
    };
    let all_taken = || io::Error::new(io::ErrorKind::AddrInUse, format!("none of {RANGE:?} on 127.0.0.1 is free"));
    (0..LOOKS).map(|_| random_port()).find(is_free).ok_or_else(all_taken)
}

fn random_port() -> u16 {
    // Seeded by the system.
    let random = RandomState::new().hash_one(()) % u64::from(RANGE.end - RANGE.start);
    RANGE.start + u16::try_from(random).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_can_be_listened_on_and_is_another_one_next_time() {
        let port = free_port().unwrap();
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(RANGE.contains(&port));
        assert!((0..100).all(|_| free_port().unwrap() != port));
    }
}
