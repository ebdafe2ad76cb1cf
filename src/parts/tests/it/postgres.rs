use std::path::PathBuf;
use std::time::{Duration, Instant};
use turnpike_parts::postgres::{Error, Postgres};
use turnpike_parts::process::{is_alive, wait_until};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_temporary_server_answers_and_leaves_nothing_behind() {
    let postgres = Postgres::start_temporary().unwrap();
    assert_eq!(postgres.psql("postgres", "SELECT upper('ä'), 1 + 1").unwrap().trim(), "Ä|2");
    let (id, data) = (postgres.id().unwrap(), postgres.data_directory().to_owned());
    assert!(is_alive(id) && data.is_dir());
    drop(postgres);
    assert!(!is_alive(id), "the server outlived its owner");
    assert!(!data.parent().unwrap().exists(), "the data outlived their owner");
}

#[test]
fn two_servers_stand_side_by_side() {
    let [one, two] = [(), ()].map(|()| std::thread::spawn(Postgres::start_temporary));
    let (one, two) = (one.join().unwrap().unwrap(), two.join().unwrap().unwrap());
    one.psql("postgres", "CREATE TABLE only_here ()").unwrap();
    assert!(two.psql("postgres", "SELECT FROM only_here").is_err());
    assert_ne!(one.url(), two.url());
}

#[test]
fn databases_are_apart_and_names_are_checked() {
    let postgres = Postgres::shared_temporary().unwrap();
    let url = postgres.create_database("apart").unwrap();
    assert!(url.contains("/apart?host=%2F"), "{url}");
    assert!(matches!(postgres.create_database("apart"), Err(Error::Program { .. })));
    assert_eq!(postgres.ensure_database("apart").unwrap(), url);
    for bad in ["", "1st", "Upper", "a;b", "a b", &"x".repeat(64)] {
        assert!(matches!(postgres.create_database(bad), Err(Error::Name(_))), "{bad:?} was accepted");
    }
    assert_ne!(postgres.fresh_database().unwrap(), postgres.fresh_database().unwrap());
}

#[test]
fn data_survive_a_restart_and_a_crash() {
    let home = Home::new();
    let mut first = Postgres::start_persistent(&home.0).unwrap();
    first.psql("postgres", "CREATE TABLE kept AS SELECT 42 AS answer").unwrap();
    assert!(first.stop(), "it stops in good order");

    let second = Postgres::start_persistent(&home.0).unwrap();
    assert_eq!(second.psql("postgres", "SELECT answer FROM kept").unwrap().trim(), "42");
    // Its owner is gone without a word, and the next start finds it still running.
    let (id, data) = (second.id().unwrap(), second.data_directory().to_owned());
    std::mem::forget(second);
    let third = Postgres::start_persistent(&home.0).unwrap();
    assert!(wait_until(soon(), || !is_alive(id)), "the leftover server still runs");
    assert_eq!(third.psql("postgres", "SELECT answer FROM kept").unwrap().trim(), "42");
    drop(third);

    // A pid file whose process id now belongs to somebody else.
    std::fs::write(data.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
    let fourth = Postgres::start_persistent(&home.0).unwrap();
    assert_eq!(fourth.psql("postgres", "SHOW fsync").unwrap().trim(), "on");
}

#[test]
fn a_server_that_was_killed_comes_back_at_the_same_url() {
    let home = Home::new();
    let mut postgres = Postgres::start_persistent(&home.0).unwrap();
    postgres.psql("postgres", "CREATE TABLE kept ()").unwrap();
    let url = postgres.url();
    let id = postgres.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-KILL", &id]).status().unwrap().success());
    assert!(wait_until(soon(), || !postgres.is_running()), "its end was not noticed");
    postgres.restart().unwrap();
    assert_eq!(postgres.url(), url);
    postgres.psql("postgres", "TABLE kept").unwrap();
}

#[test]
fn a_data_directory_out_of_reach_is_replaced_and_noted() {
    let home = Home::new();
    let private = home.0.join("private");
    std::fs::create_dir(&private).unwrap();
    std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let directory = private.join("postgres");
    let postgres = Postgres::start_persistent(&directory).unwrap();
    let data = postgres.data_directory().to_owned();
    drop(postgres);
    // Only root runs the server as somebody who cannot reach the directory.
    if turnpike_parts::account::is_root() {
        let noted = std::fs::read_to_string(directory.join("location")).unwrap();
        assert_eq!(data, PathBuf::from(noted.trim()).join("data"));
        let again = Postgres::start_persistent(&directory).unwrap();
        assert_eq!(again.data_directory(), data);
        drop(again);
        std::fs::remove_dir_all(data.parent().unwrap()).unwrap();
    } else {
        assert_eq!(data, directory.join("data"));
    }
}

/// A directory that any user may pass through, removed afterwards.
struct Home(PathBuf);

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap().keep();
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        Self(dir)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
