//! The measurements, small: every figure is there, and those that do not depend on the machine are in bounds.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn loadtest(arguments: &[&str], directory: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let output = command.args(arguments).arg(directory).output().unwrap();
    let (table, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}{errors}");
    table.into_owned()
}

fn read(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn the_figures_of_pushes_are_measured() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("figures.json");
    let table = loadtest(&["push", "--subscribers", "50", "--changes", "10", "--keys", "2000", "--json"], &file);
    assert!(table.contains("change asked for → applied, ms"), "{table}");
    let figures = read(&file);
    for (what, most) in [("/change/p99_ms", 2_000.0), ("/revocation/p99_ms", 2_000.0), ("/idle_cpu", 0.5)] {
        let value = figures.pointer(what).and_then(Value::as_f64).unwrap();
        assert!(value > 0.0 && value < most, "{what} {value}: {table}");
    }
    for wire in figures["wire"].as_array().unwrap() {
        assert!(wire["udp_bytes"].as_u64().unwrap() <= 300, "a change of one key, whatever there is: {table}");
        assert!(wire["frame_bytes"].as_u64().unwrap() <= 250, "{table}");
    }
}

#[test]
fn the_edge_is_measured_beside_others() {
    let directory = tempfile::tempdir().unwrap();
    let scenarios = ["compare", "chat-1k", "stream-64-paced", "cached", "flood-401", "flood-429"];
    let held = directory.path().join("held.toml");
    let text = include_str!("../scenarios/stream-idle.toml").replace("9500", "50").replace("9,500", "50");
    std::fs::write(&held, text).unwrap();
    let trace = directory.path().join("trace.csv");
    let line = |second: usize| format!("2026-01-01 00:00:{second:02}.5,{},3\n", 100 + second);
    std::fs::write(&trace, (0..60).map(line).collect::<String>()).unwrap();
    let more = [held.to_str().unwrap(), "--trace", trace.to_str().unwrap()];
    let arguments = [&scenarios[..], &more, &["--rounds", "1", "--seconds", "0.3", "--out"]].concat();
    let table = loadtest(&arguments, directory.path());
    let measured = read(&directory.path().join("compare.json"));
    let measured = measured["scenarios"].as_array().unwrap();
    assert_eq!(measured.len(), scenarios.len() + 1, "{table}");
    for scenario in measured {
        let samples = scenario["samples"].as_array().unwrap();
        let edge = samples.iter().find(|sample| sample["subject"] == "edge").unwrap();
        // Fifty streams take less than the system counts.
        let is_counted = scenario["scenario"]["name"] != "held";
        assert!(!is_counted || edge["cpu_us"].as_f64().unwrap() > 0.0, "{table}");
        assert!(edge["requests"].as_u64().unwrap() > 0, "{table}");
        let direct = samples.iter().find(|sample| sample["subject"] == "direct");
        let asks_directly = ["chat-1k", "stream-64-paced"].iter().any(|name| scenario["scenario"]["name"] == *name);
        assert_eq!(direct.map(|sample| sample["cpu_us"].is_null()), asks_directly.then_some(true), "{table}");
        if ["held", "trace"].iter().any(|name| scenario["scenario"]["name"] == *name) {
            assert!([50, 60].contains(&edge["requests"].as_u64().unwrap()), "all of them: {table}");
        }
        if scenario["scenario"]["name"] == "stream-64-paced" {
            // A token that comes alone, every 6 ms, is not held up for the next one.
            let between = edge["tokens"]["between_p50_us"].as_f64().unwrap();
            assert!(between > 3_000.0 && between < 12_000.0, "{table}");
        }
    }
    // What nobody had to make costs less than what was made.
    let cpu = |name: &str| {
        let scenario = measured.iter().find(|scenario| scenario["scenario"]["name"] == name).unwrap();
        let samples = scenario["samples"].as_array().unwrap();
        samples.iter().find(|sample| sample["subject"] == "edge").unwrap()["cpu_us"].as_f64().unwrap()
    };
    assert!(cpu("flood-401") < cpu("chat-1k") && cpu("cached") < cpu("chat-1k"), "{table}");
    let page = std::fs::read_to_string(directory.path().join("compare.md")).unwrap();
    assert!(page.contains("![CPU time for each request](chat-1k.svg)"), "{page}");
    assert!(std::fs::read_to_string(directory.path().join("chat-1k.svg")).unwrap().contains("bare Pingora"));
}
