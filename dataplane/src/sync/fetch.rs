//! Fetches a whole state in pieces, on a stream of its own, and makes it ready to serve by.

use super::chunk_files::ChunkFiles;
use crate::image::Image;
use crate::live::{Next, Snapshot, literal};
use crate::store::Base;
use std::collections::VecDeque;
use std::sync::Arc;
use turnpike_config::link::{Link, LinkError, Receiver, Sender, read_frame, write_frame};
use turnpike_config::log::Hash;
use turnpike_config::push::chunks::{Chunk, MAX_CHUNK};
use turnpike_config::push::{ChunkReply, ChunkRequest, Manifest};
use turnpike_config::wire::Open;

/// Chunks that are asked for before the first of them is there.
const AHEAD: usize = 16;
/// Most bytes of one chunk on its way: packing makes what cannot be packed a little larger.
const MAX_PACKED: usize = MAX_CHUNK + (64 << 10);
/// Most bytes of all chunks of a state.
const MAX_ALL: u64 = 1 << 30;

/// A state that can be served by.
pub(super) struct Fetched {
    pub(super) base: Base,
    pub(super) next: Next,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Failed {
    /// The link does not do; what was fetched is kept for the next.
    Link(LinkError),
    /// It is not to be served by.
    Refused(String),
}

impl From<LinkError> for Failed {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Fetches the state of a manifest. `current` says what is served by when it is there.
pub(super) async fn fetch(
    link: Link,
    manifest: Manifest,
    files: ChunkFiles,
    current: impl FnOnce() -> Arc<Snapshot> + Send + 'static,
) -> Result<Fetched, Failed> {
    let (send, receive) = link.open().await?;
    let mut pieces = Pieces { send, receive, files, ahead: VecDeque::new() };
    write_frame(&mut pieces.send, &Open::Chunks).await?;
    let Manifest { at, chunks, .. } = manifest;
    let (mut image, mut size) = (Image::default(), 0);
    let mut unasked = chunks.iter().copied();
    for hash in &chunks {
        let bytes = pieces.next(*hash, &mut unasked).await?;
        size += bytes.len() as u64;
        if bytes.len() > MAX_PACKED || size > MAX_ALL {
            return Err(Failed::Refused(format!("its chunks are over the limit of {MAX_ALL} bytes")));
        }
        image = blocking({
            let hash = *hash;
            move || take(image, hash, &bytes)
        })
        .await?;
    }
    blocking(move || {
        let base = Base::new(at, image.finish());
        let next = current().replaced(&base.records, Arc::clone(&base.keys), at, &literal)?;
        Ok(Fetched { base, next })
    })
    .await
}

fn take(mut image: Image, hash: Hash, bytes: &[u8]) -> Result<Image, String> {
    let changes = Chunk::open(hash, bytes).map_err(|e| e.to_string())?;
    changes.into_iter().try_for_each(|change| image.build(change))?;
    Ok(image)
}

/// Runs what would hold up other tasks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, Failed> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Failed::Refused),
        Err(panic) => Err(Failed::Refused(format!("this edge panics over it: {panic}"))),
    }
}

/// Chunks in order: from disk, or from the control plane.
struct Pieces {
    send: Sender,
    receive: Receiver,
    files: ChunkFiles,
    ahead: VecDeque<Source>,
}

enum Source {
    Kept(Vec<u8>),
    Asked,
}

impl Pieces {
    async fn next(&mut self, hash: Hash, unasked: &mut impl Iterator<Item = Hash>) -> Result<Vec<u8>, LinkError> {
        while self.ahead.len() < AHEAD
            && let Some(hash) = unasked.next()
        {
            let source = self.source(hash).await?;
            self.ahead.push_back(source);
        }
        match self.ahead.pop_front() {
            Some(Source::Kept(bytes)) => Ok(bytes),
            Some(Source::Asked) => self.receive(hash).await,
            None => Err(LinkError::Lost("a chunk that was not asked for".to_owned())),
        }
    }

    async fn source(&mut self, hash: Hash) -> Result<Source, LinkError> {
        if let Some(bytes) = tokio::task::block_in_place(|| self.files.read(hash)) {
            return Ok(Source::Kept(bytes));
        }
        write_frame(&mut self.send, &ChunkRequest { hash }).await?;
        Ok(Source::Asked)
    }

    async fn receive(&mut self, hash: Hash) -> Result<Vec<u8>, LinkError> {
        let lost = |reason: &str| LinkError::Lost(reason.to_owned());
        let reply = read_frame::<ChunkReply>(&mut self.receive).await?;
        let reply = reply.ok_or_else(|| lost("the control plane ended the stream of chunks"))?;
        let bytes = reply.bytes.ok_or_else(|| lost("a chunk is not kept any more: a new manifest is due"))?;
        if bytes.len() <= MAX_PACKED && Hash::of(&bytes) == hash {
            tokio::task::block_in_place(|| self.files.keep(hash, &bytes));
        }
        Ok(bytes.into())
    }
}
