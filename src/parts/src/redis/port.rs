//! Which port a server gets.

use super::Error;
use crate::port;
use std::net::{Ipv4Addr, TcpListener};

/// A node of a cluster also listens for the others at its port plus this.
const BUS_OFFSET: u16 = 10_000;
/// How many ports are looked at; some buses' are taken.
const LOOKS: usize = 200;

/// A port on 127.0.0.1 that nobody has at this moment, and for a node of a cluster its bus's as well.
pub(super) fn free_port(clustered: bool) -> Result<u16, Error> {
    let failed = || Error::io("looking for a free port on 127.0.0.1");
    for _ in 0..LOOKS {
        let port = port::free_port().map_err(failed())?;
        let bus_is_free = || TcpListener::bind((Ipv4Addr::LOCALHOST, port + BUS_OFFSET)).is_ok();
        if !clustered || bus_is_free() {
            return Ok(port);
        }
    }
    let reason = format!("none whose cluster bus (port + {BUS_OFFSET}) is free too");
    Err(failed()(std::io::Error::new(std::io::ErrorKind::AddrInUse, reason)))
}
