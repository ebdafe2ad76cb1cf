//! A connection to ClickHouse that can lose replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Listens in front of a server.
pub(super) struct Proxy {
    pub(super) port: u16,
    deaf: Arc<AtomicBool>,
}

impl Proxy {
    pub(super) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let deaf = Arc::new(AtomicBool::new(false));
        let proxy = Self { port, deaf: Arc::clone(&deaf) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let deaf = Arc::clone(&deaf);
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                        if !deaf.load(Ordering::SeqCst) && to_client.write_all(&buffer[..read]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        proxy
    }

    /// From now on, requests reach the server and its replies are lost, or not any more.
    pub(super) fn lose_replies(&self, lose: bool) {
        self.deaf.store(lose, Ordering::SeqCst);
    }
}
