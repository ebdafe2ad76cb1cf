//! The schema that the migrations add up to is the one in `migrations/golden.sql`.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use std::path::{Path, PathBuf};
use std::process::Command;
use turnpike_parts::postgres::Postgres;

/// Set to write the golden file instead of comparing with it.
const BLESS: &str = "TURNPIKE_BLESS";

fn migrations() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")
}

/// All migration files in the order of their numbers.
fn files() -> Vec<PathBuf> {
    let listed = std::fs::read_dir(migrations().join("postgres")).unwrap();
    let mut files: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// A dump without what differs between servers: comments, session settings, the dump tool's own guards.
fn normalise(dump: &str) -> String {
    let mut out = String::new();
    for line in dump.lines() {
        let noise = line.starts_with("--")
            || line.starts_with("SET ")
            || line.starts_with("SELECT pg_catalog.set_config")
            || line.starts_with('\\');
        if !noise && !(line.is_empty() && (out.is_empty() || out.ends_with("\n\n"))) {
            out.push_str(line);
            out.push('\n');
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn dump(postgres: &Postgres, url: &str) -> String {
    let program = turnpike_parts::postgres::Binaries::find().unwrap().path("pg_dump");
    let mut command = Command::new(program);
    command.args(["--schema-only", "--no-owner", "--no-privileges", "--dbname", url]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{} ({:?})", String::from_utf8_lossy(&output.stderr), postgres.id());
    String::from_utf8(output.stdout).unwrap()
}

/// The first line that differs, with the ones around it.
fn first_difference(expected: &str, actual: &str) -> Option<String> {
    let (expected, actual): (Vec<_>, Vec<_>) = (expected.lines().collect(), actual.lines().collect());
    let at = (0..expected.len().max(actual.len())).find(|&at| expected.get(at) != actual.get(at))?;
    let around = |lines: &[&str]| lines[at.saturating_sub(4).min(lines.len())..(at + 3).min(lines.len())].join("\n  ");
    Some(format!("line {}:\nin golden.sql\n  {}\nby the migrations\n  {}", at + 1, around(&expected), around(&actual)))
}

#[test]
fn the_migrations_add_up_to_the_golden_schema() {
    let postgres = Postgres::shared_temporary().unwrap();
    let database = "golden";
    let url = postgres.create_database(database).unwrap();
    for file in files() {
        let sql = std::fs::read_to_string(&file).unwrap();
        postgres.psql(database, &sql).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    let actual = normalise(&dump(postgres, &url));
    let golden = migrations().join("golden.sql");
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&golden, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    if let Some(difference) = first_difference(&expected, &actual) {
        panic!(
            "the schema changed at {difference}\nIf that is meant, run ./test --bless and commit migrations/golden.sql."
        );
    }
}

#[test]
fn migrations_are_numbered_without_gaps() {
    for (index, file) in files().iter().enumerate() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with(&format!("{:04}_", index + 1)), "{name} is migration {}", index + 1);
        assert!(name.ends_with(".sql"), "{name} is no SQL file");
    }
}

#[test]
fn dumps_are_compared_without_noise() {
    assert_eq!(
        normalise("--\n-- head\n\\restrict x\n\nSET a = 1;\n\n\nCREATE TABLE t;\n\n\n\nCREATE TABLE u;\n\n"),
        "CREATE TABLE t;\n\nCREATE TABLE u;\n"
    );
    assert_eq!(first_difference("a\nb", "a\nb"), None);
    assert!(first_difference("a\nb", "a").is_some_and(|difference| difference.starts_with("line 2")));
}
