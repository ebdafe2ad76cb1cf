//! The schema in ClickHouse: plain SQL files, applied in order, once each.
//!
//! The files name engines as `{engine:ReplacingMergeTree(version)}`; which one that is depends on whether a cluster is set.

use super::Options;
use ::clickhouse::error::Error;
use ::clickhouse::{Client, Row};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::info;
use uuid::Uuid;

/// Number, name, text.
const MIGRATIONS: [(u32, &str, &str); 3] = [
    (1, "request_analytics", include_str!("../../../../migrations/clickhouse/0001_request_analytics.sql")),
    (2, "model_performance", include_str!("../../../../migrations/clickhouse/0002_model_performance.sql")),
    (3, "daily_usage_summary", include_str!("../../../../migrations/clickhouse/0003_daily_usage_summary.sql")),
];

const APPLIED: &str = "
CREATE TABLE IF NOT EXISTS schema_migrations{on_cluster} (
    version UInt32,
    name String,
    checksum String,
    applied_at DateTime('UTC') DEFAULT now('UTC')
)
ENGINE = {engine:ReplacingMergeTree()}
ORDER BY version";

/// Tables whose rows are deleted when they are old enough.
const KEPT_FOR_A_TIME: [(&str, &str); 2] = [("request_analytics", "timestamp"), ("model_performance", "timestamp")];

/// Where tables of a Replicated engine keep their common state, in Keeper.
const KEEPER_PATH: &str = "/clickhouse/tables/{shard}/{database}/{table}";

#[derive(Row, Serialize, Deserialize)]
struct Applied {
    version: u32,
    name: String,
    checksum: String,
}

#[derive(Row, Deserialize)]
struct Identity {
    #[serde(with = "::clickhouse::serde::uuid")]
    uuid: Uuid,
}

/// Why the schema is not in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrationError {
    /// ClickHouse refused a statement or does not answer.
    #[error("{what}: {source}")]
    Query {
        /// What was being done.
        what: String,
        /// What it said.
        source: Error,
    },
    /// The database was migrated by another build whose file differs.
    #[error(
        "migration {version} ({name}) was applied with another text than this build has; released files are never \
         edited: run the build that belongs to this database, or use another clickhouse.database"
    )]
    Edited {
        /// Its number.
        version: u32,
        /// Its name.
        name: String,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(Error) -> MigrationError {
    let what = what.into();
    move |source| MigrationError::Query { what, source }
}

/// Brings the database up to date, and gives the UUID of the table that is the ledger. `client` is not bound to a database
/// yet; the caller sees to it that nobody else migrates at the same time.
pub(super) async fn migrate(client: &Client, options: &Options) -> Result<Uuid, MigrationError> {
    let create = format!("CREATE DATABASE IF NOT EXISTS {}{}", options.database, on_cluster(options));
    client.query(&create).execute().await.map_err(failed(format!("making database {}", options.database)))?;
    let client = client.clone().with_database(&options.database);
    client.query(&render(APPLIED, options)).execute().await.map_err(failed("making schema_migrations"))?;
    let applied: Vec<Applied> = client
        .query("SELECT version, name, checksum FROM schema_migrations FINAL ORDER BY version")
        .fetch_all()
        .await
        .map_err(failed("reading schema_migrations"))?;
    for (version, name, text) in MIGRATIONS {
        let checksum = checksum(text);
        match applied.iter().find(|applied| applied.version == version) {
            Some(applied) if applied.checksum == checksum => continue,
            Some(_) => return Err(MigrationError::Edited { version, name: name.to_owned() }),
            None => {}
        }
        // Each can be applied again: there are no transactions to keep half a file from being applied.
        for statement in statements(&render(text, options)) {
            client.query(&statement).execute().await.map_err(failed(format!("migration {version} ({name})")))?;
        }
        let recording = || failed(format!("recording migration {version}"));
        let mut insert = client.insert::<Applied>("schema_migrations").await.map_err(recording())?;
        insert.write(&Applied { version, name: name.to_owned(), checksum }).await.map_err(recording())?;
        insert.end().await.map_err(recording())?;
        info!(version, name, "ClickHouse migration applied");
    }
    keep_for(&client, options).await?;
    let identity: Identity = client
        .query("SELECT uuid FROM system.tables WHERE database = ? AND name = 'request_analytics'")
        .bind(&options.database)
        .fetch_one()
        .await
        .map_err(failed("looking for request_analytics"))?;
    Ok(identity.uuid)
}

/// Sets for how long rows are kept, where that is not what the tables say.
async fn keep_for(client: &Client, options: &Options) -> Result<(), MigrationError> {
    for (table, column) in KEPT_FOR_A_TIME {
        let setting = || failed(format!("setting how long {table} keeps its rows"));
        // Whole days: an hour that is summed anew has all of its events or none.
        let rule = format!("toStartOfDay({column}) + toIntervalDay({})", options.keep_days);
        let engine: String = client
            .query("SELECT engine_full FROM system.tables WHERE database = ? AND name = ?")
            .bind(&options.database)
            .bind(table)
            .fetch_one()
            .await
            .map_err(setting())?;
        if !engine.contains(&format!("TTL {rule}")) {
            // New parts get it at once, old ones when they are merged: rewriting them all would be a heavy price.
            let alter = format!("ALTER TABLE {table}{} MODIFY TTL {rule}", on_cluster(options));
            let alter = client.query(&alter).with_setting("materialize_ttl_after_modify", "0");
            alter.execute().await.map_err(setting())?;
        }
    }
    Ok(())
}

fn checksum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn on_cluster(options: &Options) -> String {
    options.cluster.as_ref().map(|cluster| format!(" ON CLUSTER '{cluster}'")).unwrap_or_default()
}

/// A file as it is for these options.
fn render(text: &str, options: &Options) -> String {
    let mut rendered = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{engine:") {
        let (engine, after) = after.split_once('}').unwrap_or((after, ""));
        rendered.push_str(before);
        rendered.push_str(&engine_for(engine, options));
        rest = after;
    }
    rendered.push_str(rest);
    rendered.replace("{on_cluster}", &on_cluster(options))
}

/// `ReplacingMergeTree(v)`, or `ReplicatedReplacingMergeTree('path', '{replica}', v)` on a cluster.
fn engine_for(engine: &str, options: &Options) -> String {
    if options.cluster.is_none() {
        return engine.to_owned();
    }
    let (name, arguments) = engine.split_once('(').unwrap_or((engine, ")"));
    let arguments = arguments.trim_end_matches(')');
    let comma = if arguments.is_empty() { "" } else { ", " };
    format!("Replicated{name}('{KEEPER_PATH}', '{{replica}}'{comma}{arguments})")
}

/// The statements of a file, without comments.
fn statements(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    let code = code.join("\n");
    code.split(";\n").map(|part| part.trim().trim_end_matches(';').to_owned()).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(cluster: Option<&str>) -> Options {
        Options { cluster: cluster.map(str::to_owned), ..Options::for_tests() }
    }

    #[test]
    fn every_file_is_in_the_list() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/clickhouse");
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        let listed: Vec<String> =
            MIGRATIONS.iter().map(|(version, name, _)| format!("{version:04}_{name}.sql")).collect();
        assert_eq!(names, listed);
    }

    #[test]
    fn engines_are_plain_alone_and_replicated_on_a_cluster() {
        let text = "CREATE TABLE t{on_cluster} (a Int8)\nENGINE = {engine:ReplacingMergeTree(v)}\nORDER BY a";
        let alone = render(text, &options(None));
        assert_eq!(alone, "CREATE TABLE t (a Int8)\nENGINE = ReplacingMergeTree(v)\nORDER BY a");
        assert_eq!(
            render(text, &options(Some("main"))),
            "CREATE TABLE t ON CLUSTER 'main' (a Int8)\nENGINE = ReplicatedReplacingMergeTree(\
             '/clickhouse/tables/{shard}/{database}/{table}', '{replica}', v)\nORDER BY a"
        );
        let bare = render("ENGINE = {engine:MergeTree()}", &options(Some("main")));
        assert!(bare.ends_with("'{replica}')"), "{bare}");
        for (_, name, text) in MIGRATIONS {
            for cluster in [None, Some("main")] {
                let rendered = render(text, &options(cluster));
                assert!(!rendered.contains("{engine") && !rendered.contains("{on_"), "{name}: {rendered}");
                assert_eq!(rendered.contains("Replicated"), cluster.is_some(), "{name}");
            }
        }
    }

    #[test]
    fn a_file_is_taken_apart_into_statements() {
        assert_eq!(statements("-- why; and\nCREATE a;\n\nCREATE b\n-- more\nAS c;\n"), ["CREATE a", "CREATE b\nAS c"]);
    }
}
