//! The launcher says what is wrong. That it serves is tested where it is used, in `turnpike-parts`.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use std::process::Command;

fn complaint(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_turnpike-clickhouse")).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_is_no_library_is_refused() {
    assert!(complaint(&[]).contains("usage: turnpike-clickhouse LIBRARY"));
    let missing = complaint(&["/no/such/libchdb.so"]);
    assert!(missing.contains("/no/such/libchdb.so"), "{missing}");
    let other = complaint(&["libc.so.6"]);
    assert!(other.contains("not the expected library"), "{other}");
}
