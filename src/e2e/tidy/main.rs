//! House rules that neither rustc nor clippy checks, over every crate of the workspace.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod graph;
mod sources;

use serde_json::Value;
use sources::Module;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines a source file may have, its unit tests not counted.
const MAX_LINES: usize = 500;
/// Crates that run as processes of their own and know each other only through `turnpike-config`.
const PLANES: [&str; 3] = ["turnpike-controlplane", "turnpike-dataplane", "turnpike-gpu-node"];

/// A workspace member, as cargo describes it.
struct Member {
    name: String,
    manifest: PathBuf,
    /// Root file of its library or binary.
    roots: Vec<PathBuf>,
    /// Other members it depends on, for its code or its tests.
    dependencies: Vec<String>,
}

fn members() -> Vec<Member> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let members: Vec<_> = list(&metadata["packages"])
        .iter()
        .map(|package| Member {
            name: text(&package["name"]),
            manifest: text(&package["manifest_path"]).into(),
            roots: list(&package["targets"])
                .iter()
                .filter(|target| list(&target["kind"]).iter().any(|kind| kind == "lib" || kind == "bin"))
                .map(|target| text(&target["src_path"]).into())
                .collect(),
            dependencies: list(&package["dependencies"])
                .iter()
                .filter(|dependency| !dependency["path"].is_null())
                .map(|dependency| text(&dependency["name"]))
                .collect(),
        })
        .collect();
    assert!(members.len() >= 5, "cargo knows only {} members", members.len());
    members
}

/// Every Rust file of the repository, tests included.
fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn repository_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    rust_files(Path::new(env!("CARGO_MANIFEST_DIR")), &mut files);
    assert!(files.len() > 20, "only {} files found", files.len());
    files
}

fn is_test_code(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "e2e")
}

/// Lines before a file's unit tests.
fn code_lines(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ")).unwrap_or(lines.len())
}

fn inherits_lints(manifest: &str) -> bool {
    let manifest: toml::Table = manifest.parse().unwrap();
    manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
}

fn fail_if_any(mistakes: &[String], rule: &str) {
    assert!(mistakes.is_empty(), "{rule}:\n  {}", mistakes.join("\n  "));
}

#[test]
fn no_crate_has_an_import_cycle_between_its_modules() {
    let mut mistakes = Vec::new();
    for member in members() {
        for root in &member.roots {
            let modules = Module::read_crate(root).unwrap_or_else(|e| panic!("{}: {e}", member.name));
            mistakes.extend(graph::cycles(&modules).into_iter().map(|cycle| format!("{}: {cycle}", member.name)));
        }
    }
    fail_if_any(&mistakes, "modules of one crate may not import each other in a circle");
}

#[test]
fn no_plane_imports_another() {
    let mut mistakes = Vec::new();
    for member in members() {
        let may = |dependency: &str| match member.name.as_str() {
            "turnpike" => true,
            // It takes part in a deployment, as planes do.
            "loadtest" => matches!(dependency, "turnpike-config" | "turnpike-parts"),
            name if PLANES.contains(&name) => matches!(dependency, "turnpike-config" | "turnpike-parts"),
            _ => false,
        };
        let forbidden = member.dependencies.iter().filter(|dependency| !may(dependency));
        mistakes.extend(forbidden.map(|dependency| format!("{} depends on {dependency}", member.name)));
    }
    fail_if_any(&mistakes, "planes share turnpike-config and nothing else");
}

#[test]
fn files_stay_short() {
    let mut mistakes = Vec::new();
    for path in repository_files().iter().filter(|path| !is_test_code(path)) {
        let lines = code_lines(&std::fs::read_to_string(path).unwrap());
        if lines > MAX_LINES {
            mistakes.push(format!("{}: {lines} lines", path.display()));
        }
    }
    fail_if_any(&mistakes, &format!("a file has at most {MAX_LINES} lines besides its unit tests; split it"));
}

#[test]
fn no_test_is_ignored() {
    let mut mistakes = Vec::new();
    for path in repository_files() {
        let file = syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let ignored = sources::ignored_tests(&file);
        mistakes.extend(ignored.into_iter().map(|test| format!("{}: {test}", path.display())));
    }
    fail_if_any(&mistakes, "a test that is not run proves nothing; repair it or remove it");
}

#[test]
fn every_member_inherits_the_lints() {
    let mut mistakes = Vec::new();
    for member in members() {
        if !inherits_lints(&std::fs::read_to_string(&member.manifest).unwrap()) {
            mistakes.push(format!("{}: add [lints] workspace = true", member.manifest.display()));
        }
    }
    fail_if_any(&mistakes, "the workspace's lints hold everywhere");
}

#[test]
fn unit_tests_do_not_count_as_code() {
    assert_eq!(code_lines("a\nb\n\n#[cfg(test)]\nmod tests {\n}\n"), 3);
    assert_eq!(code_lines("#[cfg(test)]\nuse x;\nb\n"), 3);
}

#[test]
fn a_manifest_without_the_lints_is_noticed() {
    assert!(inherits_lints("[lints]\nworkspace = true"));
    assert!(!inherits_lints("[package]\nname = \"x\""));
    assert!(!inherits_lints("[lints]\nworkspace = false"));
}
