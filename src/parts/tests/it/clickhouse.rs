use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use turnpike_parts::clickhouse::{ClickHouse, Error};
use turnpike_parts::process::{is_alive, wait_until};

const MOMENT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(30);

fn table(server: &ClickHouse) {
    server.query("CREATE DATABASE own").unwrap();
    server.query("CREATE TABLE own.t (a UInt64) ENGINE = MergeTree ORDER BY a").unwrap();
}

fn count(server: &ClickHouse) -> u64 {
    server.query("SELECT count() FROM own.t").unwrap().parse().unwrap()
}

#[test]
fn a_temporary_server_answers_and_leaves_nothing_behind() {
    let mut server = ClickHouse::start_temporary().unwrap();
    assert!(server.url().starts_with("http://turnpike:") && server.url().ends_with(&server.port().to_string()));
    assert_eq!(server.query("SELECT number FROM numbers(3)").unwrap(), "0\n1\n2");
    assert_eq!(server.query("SELECT timezone(), currentUser()").unwrap(), "UTC\tturnpike");
    table(&server);
    server.query("INSERT INTO own.t SELECT * FROM numbers(1000)").unwrap();
    assert_eq!(count(&server), 1000);
    let Err(Error::Query { reason, .. }) = server.query("SELECT * FROM own.nowhere") else { panic!("it was answered") };
    assert!(reason.contains("UNKNOWN_TABLE"), "{reason}");
    let (id, data) = (server.id().unwrap(), server.data_directory().to_owned());
    assert!(server.is_running() && is_alive(id) && data.is_dir());
    drop(server);
    assert!(!is_alive(id), "the server outlived its owner");
    assert!(!data.exists(), "the data outlived their owner");
}

#[test]
fn two_servers_stand_side_by_side_and_keep_strangers_out() {
    let started: Vec<_> = (0..2).map(|_| std::thread::spawn(ClickHouse::start_temporary)).collect();
    let servers: Vec<_> = started.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect();
    assert_ne!(servers[0].port(), servers[1].port());
    table(&servers[0]);
    assert_eq!(servers[1].query("SELECT count() FROM system.databases WHERE name = 'own'").unwrap(), "0");
    let other_password = servers[1].url().replace(&servers[1].port().to_string(), &servers[0].port().to_string());
    let output = Command::new("curl").args(["-sS", &other_password, "--data", "SELECT 1"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("AUTHENTICATION_FAILED"), "{said}");
}

#[test]
fn what_was_acknowledged_survives_a_crash_and_a_stop() {
    let mut server = ClickHouse::start_temporary().unwrap();
    let (url, first) = (server.url(), server.id().unwrap());
    table(&server);
    for batch in 0..5 {
        server.query(&format!("INSERT INTO own.t SELECT * FROM numbers({}, 100)", batch * 100)).unwrap();
    }
    server.kill();
    assert!(!server.is_running() && !is_alive(first) && !server.answers(MOMENT));
    server.restart().unwrap();
    assert_eq!((count(&server), server.url()), (500, url));
    assert_ne!(server.id().unwrap(), first);
    server.query("INSERT INTO own.t VALUES (1)").unwrap();
    assert!(server.stop(), "it stops in good order");
    server.restart().unwrap();
    assert_eq!(count(&server), 501);

    server.restart_read_only().unwrap();
    let refusal = server.query("INSERT INTO own.t VALUES (2)").unwrap_err().to_string();
    assert!(refusal.contains("READONLY"), "{refusal}");
    assert_eq!(count(&server), 501);
    server.restart().unwrap();
    server.query("INSERT INTO own.t VALUES (3)").unwrap();
}

#[test]
fn a_restart_waits_until_its_port_is_free() {
    let mut server = ClickHouse::start_temporary().unwrap();
    server.kill();
    let stranger = TcpListener::bind(("127.0.0.1", server.port())).unwrap();
    let restart = std::thread::spawn(move || server.restart().map(|()| server));
    std::thread::sleep(MOMENT);
    assert!(!restart.is_finished(), "it gave up, or took the stranger for itself");
    drop(stranger);
    assert!(restart.join().unwrap().unwrap().answers(PATIENCE));
}

#[test]
fn a_paused_server_does_not_answer_until_it_is_resumed() {
    let mut server = ClickHouse::start_temporary().unwrap();
    server.pause().unwrap();
    assert!(!server.answers(MOMENT) && server.is_running());
    server.resume().unwrap();
    assert!(server.answers(PATIENCE));
    server.pause().unwrap();
    let id = server.id().unwrap();
    drop(server);
    assert!(!is_alive(id), "a paused server outlived its owner");
}

/// Runs itself as another process, which starts a server and is then killed.
#[test]
fn nothing_is_left_when_the_owner_is_killed() {
    const ROLE: &str = "TURNPIKE_TEST_CLICKHOUSE_OWNER";
    if std::env::var_os(ROLE).is_some() {
        let server = ClickHouse::start_temporary().unwrap();
        println!("\nowned: {} {}", server.id().unwrap(), server.data_directory().display());
        std::thread::sleep(PATIENCE);
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner.args(["--exact", "clickhouse::nothing_is_left_when_the_owner_is_killed", "--nocapture"]).env(ROLE, "1");
    let mut owner = owner.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let owned = lines.find_map(|line| line.strip_prefix("owned: ").map(str::to_owned)).unwrap();
    let (id, data) = owned.split_once(' ').unwrap();
    let (id, data) = (id.parse().unwrap(), PathBuf::from(data));
    assert!(is_alive(id) && data.is_dir());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let soon = Instant::now() + PATIENCE;
    assert!(wait_until(soon, || !is_alive(id)), "the server outlived its owner");
    assert!(wait_until(soon, || !data.exists()), "the data outlived their owner");
}
