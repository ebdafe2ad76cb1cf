//! Where a node is reached.

/// A node's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUrl {
    /// `https`: mutual TLS.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port, 1 to 65535.
    pub port: u16,
}

impl NodeUrl {
    /// Reads `http(s)://host:port`; anything more or less is refused.
    pub fn parse(url: &str) -> Option<Self> {
        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return None,
        };
        let (host, port) = rest.strip_suffix('/').unwrap_or(rest).rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').filter(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok())?,
            None => host,
        };
        let clean = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_');
        let port = port.parse().ok().filter(|port| *port != 0)?;
        (!host.is_empty() && host.chars().all(clean)).then(|| Self { tls, host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_urls() {
        let parsed = NodeUrl::parse("https://10.0.0.1:9000");
        assert_eq!(parsed, Some(NodeUrl { tls: true, host: "10.0.0.1".to_owned(), port: 9000 }));
        assert!(NodeUrl::parse("http://[::1]:80").is_some_and(|u| u.host == "::1"));
        for bad in ["ftp://a:1", "http://a", "http://a:0", "http://:1", "http://a:1/x", "http://a b:1", "http://[zz]:1"]
        {
            assert_eq!(NodeUrl::parse(bad), None, "{bad}");
        }
    }
}
