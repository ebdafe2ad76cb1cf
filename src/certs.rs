//! `turnpike certs`: an authority, and certificates for processes.

use crate::pki::{Authority, SigningFiles, Subject};
use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use std::io::Write as _;
use std::path::PathBuf;
use turnpike_config::link::{Role, domain};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a certificate authority for a deployment: ca.pem, which every process gets, and ca.key, which none does.
    Init {
        /// Where its files go.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make the key that signs what edges are told: signing.key for control planes, signing.pub for edges.
    Signing {
        /// Where its files go.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make a certificate for one process: NAME.pem and NAME.key beside the authority's files.
    #[command(after_help = "\
Example, a node that edges reach at 10.0.0.7:
  turnpike certs issue --role node --name gpu-7 --host 10.0.0.7 --dir certs
Then copy ca.pem, gpu-7.pem and gpu-7.key to the node and name them in [tls] of its settings.")]
    Issue {
        /// What the process is.
        #[arg(long, value_enum)]
        role: RoleName,
        /// Which one it is; edges and nodes need different names.
        #[arg(long)]
        name: String,
        /// The authority's directory.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// A DNS name or IP address at which it is reached; may be repeated.
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long the certificate is valid.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoleName {
    Edge,
    Node,
    Control,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Edge => Self::Edge,
            RoleName::Node => Self::Node,
            RoleName::Control => Self::Control,
        }
    }
}

/// `turnpike certs`
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match command {
        Command::Init { dir } => {
            Authority::create(dir)?;
            writeln!(out, "{}\n{}", dir.join("ca.pem").display(), dir.join("ca.key").display())?;
        }
        Command::Signing { dir } => {
            let files = SigningFiles::create(dir)?;
            writeln!(out, "{}\n{}", files.key.display(), files.public.display())?;
        }
        Command::Issue { role, name, dir, hosts, days } => {
            let role = Role::from(*role);
            if dir.join(format!("{name}.pem")).exists() {
                bail!(
                    "{} already holds a certificate called {name}; remove {name}.pem and {name}.key first",
                    dir.display()
                );
            }
            let files = Authority::open(dir)?.issue(&Subject { role, name, hosts, days: *days })?;
            writeln!(out, "{}\n{}", files.cert.display(), files.key.display())?;
            tracing::info!(identity = domain(role, name), days, "certificate issued");
        }
    }
    Ok(())
}
