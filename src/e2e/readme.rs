//! Every command in README.md does what it says.

use crate::harness::{Up, python};
use std::path::Path;
use std::process::{Command, Output};

/// The fenced blocks of the README, as (language, text).
fn blocks() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some((_, text))) => *text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    found
}

fn check(what: &str, output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}\n{out}\n{err}");
    out.into_owned()
}

/// An address that `up` wrote into a plane's settings.
fn listens(data_dir: &Path, plane: &str, section: &str) -> String {
    let settings = std::fs::read_to_string(data_dir.join(format!("{plane}.toml"))).unwrap();
    let settings: toml::Table = settings.parse().unwrap();
    settings[section]["listen"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned()
}

/// The block with the ports that were free in place of the usual ones.
fn with_ports(block: &str, data_dir: &Path) -> String {
    const USUAL: [(&str, &str, &str); 4] = [
        ("8080", "dataplane", "http"),
        ("8081", "controlplane", "http"),
        ("8082", "dataplane", "admin"),
        ("8091", "gpu-node", "metrics"),
    ];
    // In two steps, for a free port may look like a usual one.
    let marked = USUAL
        .iter()
        .fold(block.to_owned(), |text, (usual, plane, section)| text.replace(usual, &format!("<{plane}.{section}>")));
    USUAL.iter().fold(marked, |text, (_, plane, section)| {
        text.replace(&format!("<{plane}.{section}>"), &listens(data_dir, plane, section))
    })
}

/// Runs a shell block beside a running installation. `cargo run` becomes the binary that is tested.
fn run_shell(block: &str, data_dir: &Path) -> String {
    let script = with_ports(block, data_dir).replace("cargo run --release --", env!("CARGO_BIN_EXE_turnpike"));
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(data_dir.parent().unwrap())
        .output()
        .unwrap();
    check(&script, &output)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join(".turnpike");
    let up = Up::start(&data_dir, "builtin");
    let mut ran = 0;
    for (language, block) in blocks() {
        match language.as_str() {
            // It is running already, on other ports; and this test is part of ./test.
            "sh" if block.trim() == "cargo run --release -- up" || block.trim() == "./test" => ran += 1,
            "sh" => {
                assert!(!run_shell(&block, &data_dir).trim().is_empty(), "it printed nothing: {block}");
                ran += 1;
            }
            "python" => {
                let mut command = python();
                command.args(["-c", &block]);
                command.env("OPENAI_BASE_URL", up.text("base_url")).env("OPENAI_API_KEY", up.text("api_key"));
                assert!(!check(&block, &command.output().unwrap()).trim().is_empty(), "it printed nothing: {block}");
                ran += 1;
            }
            "toml" if block.contains("[redis]") => {
                turnpike_dataplane::Settings::load("README.md", &block, &|_| None).unwrap();
                ran += 1;
            }
            "toml" => {
                turnpike_gpu_node::Settings::load("README.md", &block, &|_| None).unwrap();
                ran += 1;
            }
            "text" => {}
            other => panic!("a block of kind «{other}» is not tested:\n{block}"),
        }
    }
    assert!(ran >= 7, "only {ran} blocks were found");
}
