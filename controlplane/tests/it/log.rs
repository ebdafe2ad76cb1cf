//! The config log, written to by hand.

use crate::plane::Plane;
use serde_json::Value;
use turnpike_config::log::{Entry, Hash, Position};

/// Appends what the admin API would not.
pub(crate) async fn append_by_hand(plane: &Plane, author: &str, changes: Vec<Value>) {
    let mut tx = plane.pool.begin().await.unwrap();
    let head: (i64, Vec<u8>) =
        sqlx::query_as("SELECT version, chain FROM config_head FOR UPDATE").fetch_one(&mut *tx).await.unwrap();
    let mut at = Position { version: head.0.unsigned_abs(), chain: Hash(head.1.try_into().unwrap()) };
    let (mut versions, mut entries, mut chains) = (Vec::new(), Vec::new(), Vec::new());
    for change in &changes {
        let entry = Entry { change: serde_json::from_value(change.clone()).unwrap(), audience: None }.to_bytes();
        at = at.then(Hash::of(&entry));
        versions.push(i64::try_from(at.version).unwrap());
        entries.push(entry.to_vec());
        chains.push(at.chain.0.to_vec());
    }
    sqlx::query(
        "INSERT INTO config_log (version, entry, chain, change, author)
         SELECT *, $5 FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::jsonb[])",
    )
    .bind(&versions)
    .bind(entries)
    .bind(chains)
    .bind(changes)
    .bind(author)
    .execute(&mut *tx)
    .await
    .unwrap();
    sqlx::query("UPDATE config_head SET version = $1, chain = $2")
        .bind(versions.last().unwrap())
        .bind(at.chain.0.to_vec())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}
