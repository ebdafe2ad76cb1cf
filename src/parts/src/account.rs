//! Operating system users: which one a server may run as, and what that user can reach.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A user's numeric identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

/// Whether this process is root, which some servers refuse to run as.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Account {
    /// The user this process runs as.
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// The first of `names` that exists on this machine.
    pub fn first_of(names: &[&str]) -> Option<Self> {
        let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
        names.iter().find_map(|name| Self::in_passwd(&passwd, name))
    }

    fn in_passwd(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (found, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            (found == name).then_some(())?;
            Some(Self { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        })
    }

    /// Whether this user may pass through every directory above `path`, and through `path` itself if it is one.
    /// Extended access lists are not looked at.
    pub fn reaches(self, path: &Path) -> bool {
        let Ok(path) = path.canonicalize() else { return false };
        path.ancestors().all(|part| std::fs::metadata(part).is_ok_and(|meta| !meta.is_dir() || self.may_enter(&meta)))
    }

    fn may_enter(self, directory: &Metadata) -> bool {
        let bit = match () {
            () if self.uid == 0 => return true,
            () if self.uid == directory.uid() => 0o100,
            () if self.gid == directory.gid() => 0o010,
            () => 0o001,
        };
        directory.mode() & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn users_are_found_in_passwd_lines() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:101:104::/var/lib:/bin/bash\n";
        assert_eq!(Account::in_passwd(passwd, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(Account::in_passwd(passwd, "post"), None);
        assert_eq!(Account::in_passwd(passwd, "broken"), None);
    }

    #[test]
    fn a_private_directory_stops_strangers_but_not_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(Account::own().reaches(&inner));
        assert!(!Account { uid: 4_000_000, gid: 4_000_000 }.reaches(&inner));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o711)).unwrap();
        assert!(Account { uid: 4_000_000, gid: 4_000_000 }.reaches(&inner));
    }
}
