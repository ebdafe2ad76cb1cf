//! The measurement of pushes, small: every figure is there, and those that do not depend on the machine are in bounds.

use serde_json::Value;
use std::process::Command;

#[test]
fn the_figures_of_pushes_are_measured() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("figures.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["push", "--subscribers", "50", "--changes", "10", "--keys", "2000", "--json"]).arg(&file);
    let output = command.output().unwrap();
    let (table, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}{errors}");
    assert!(table.contains("change asked for → applied, ms"), "{table}");
    let figures: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    for (what, most) in [("/change/p99_ms", 2_000.0), ("/revocation/p99_ms", 2_000.0), ("/idle_cpu", 0.5)] {
        let value = figures.pointer(what).and_then(Value::as_f64).unwrap();
        assert!(value > 0.0 && value < most, "{what} {value}: {table}");
    }
    for wire in figures["wire"].as_array().unwrap() {
        assert!(wire["udp_bytes"].as_u64().unwrap() <= 300, "a change of one key, whatever there is: {table}");
        assert!(wire["frame_bytes"].as_u64().unwrap() <= 250, "{table}");
    }
}
