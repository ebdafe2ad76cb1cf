//! Makes an engine a node: registers it with the control plane and publishes its load, as a node agent does.

use super::MODELS;
use super::serve::{Done, Engine};
use anyhow::{Context as _, bail};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use turnpike_config::NodeState;
use turnpike_config::link::{Identity, Links, read_frame, write_frame};
use turnpike_config::records::Served;
use turnpike_config::wire::{NodeHello, NodeReply, NodeReport, Open};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// Requests that a node may say it works on at once.
const SLOTS: u32 = 100_000;

/// As long as the process lives; `place` is its region and where edges reach it.
pub(super) async fn keep(engine: Arc<Engine>, identity: Identity, control: String, place: (String, SocketAddr)) {
    let (region, address) = place;
    let served = |name: &str| Served { model: name.to_owned(), version: "1".to_owned() };
    let hello = NodeHello {
        region,
        url: format!("http://{address}"),
        engine: "simulator".to_owned(),
        serves: MODELS.iter().map(|model| served(model.name)).collect(),
        slots: SLOTS,
        gpus: Vec::new(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut links = Links::keep(&[control], identity);
    loop {
        let link = links.first().await;
        let ended = report(&engine, &link, &hello).await;
        link.close(0, "starting over");
        if let Err(error) = ended {
            // Its log is all that it has to say it with.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{address}: {error:#}\n").as_bytes());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn report(engine: &Engine, link: &turnpike_config::link::Link, hello: &NodeHello) -> anyhow::Result<()> {
    let (mut send, mut receive) = link.open().await?;
    write_frame(&mut send, &Open::Node(hello.clone())).await?;
    let every = match read_frame(&mut receive).await?.context("the control plane hung up")? {
        NodeReply::Welcome { report_every_ms } => Duration::from_millis(report_every_ms.into()),
        NodeReply::Refused(reason) => bail!("refused: {reason}"),
    };
    let permille = |kv: usize| Some(u16::try_from(kv).unwrap_or(u16::MAX));
    let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
    loop {
        let (load, Done { requests, tokens }) = (engine.load(), engine.done());
        let report = NodeReport {
            state: NodeState::Ready,
            running: count(load.running),
            waiting: count(load.waiting),
            kv_cache_permille: permille(load.kv_permille),
            gpu_permille: None,
            gpu_memory_permille: None,
            completed: requests,
            generated_tokens: tokens,
        };
        write_frame(&mut send, &report).await?;
        tokio::time::sleep(every).await;
    }
}
