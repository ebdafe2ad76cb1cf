use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use turnpike_parts::process::{is_alive, wait_until};
use turnpike_parts::redis::{Error, Options, Redis, RedisCluster, Tls};

const MOMENT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// redis-cli with a client's own login, as opposed to the operator's; what it printed on either stream.
fn as_client(redis: &Redis, login: &[&str], arguments: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    command.env_remove("REDISCLI_AUTH").args(["-p", &redis.port().to_string(), "--no-auth-warning"]);
    let output = command.args(login).args(arguments).output().unwrap();
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8(both).unwrap().trim().to_owned()
}

#[test]
fn a_temporary_server_answers_and_leaves_nothing_behind() {
    let mut redis = Redis::start_temporary().unwrap();
    assert_eq!(redis.url(), format!("redis://127.0.0.1:{}", redis.port()));
    assert_eq!(redis.command(&["PING"]).unwrap(), "PONG");
    assert_eq!(redis.command(&["SET", "key", "two words"]).unwrap(), "OK");
    assert_eq!(redis.command(&["GET", "key"]).unwrap(), "two words");
    let settings = [("appendonly", "yes"), ("appendfsync", "everysec"), ("save", ""), ("bind", "127.0.0.1")];
    for (name, value) in settings.into_iter().chain([("maxmemory-policy", "noeviction"), ("protected-mode", "yes")]) {
        assert_eq!(redis.command(&["CONFIG", "GET", name]).unwrap(), format!("{name}\n{value}").trim());
    }
    let (id, data) = (redis.id().unwrap(), redis.data_directory().to_owned());
    assert!(redis.is_running() && is_alive(id) && data.is_dir());
    drop(redis);
    assert!(!is_alive(id), "the server outlived its owner");
    assert!(!data.exists(), "the data outlived their owner");
}

#[test]
fn a_refusal_is_an_error() {
    let redis = Redis::start_temporary().unwrap();
    let Err(Error::Command { command, output, .. }) = redis.command(&["NOSUCH", "secret"]) else {
        panic!("the command was accepted")
    };
    assert!(command == "NOSUCH" && output.contains("unknown command"), "{command}: {output}");
}

#[test]
fn servers_stand_side_by_side() {
    let started: Vec<_> = (0..4).map(|_| std::thread::spawn(Redis::start_temporary)).collect();
    let servers: Vec<_> = started.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect();
    servers[0].command(&["SET", "only", "here"]).unwrap();
    for other in &servers[1..] {
        assert_eq!(other.command(&["DBSIZE"]).unwrap(), "0");
    }
}

#[test]
fn data_survive_a_crash_and_a_stop() {
    let mut redis = Redis::start_temporary().unwrap();
    let (url, first) = (redis.url().to_owned(), redis.id().unwrap());
    redis.command(&["SET", "kept", "42"]).unwrap();
    // With everysec, a write waits in memory while an fsync is under way.
    let written = || redis.command(&["INFO", "persistence"]).unwrap().contains("aof_buffer_length:0");
    assert!(wait_until(soon(), written));
    redis.kill();
    assert!(!redis.is_running() && !is_alive(first) && !redis.answers(MOMENT));
    redis.restart().unwrap();
    assert_eq!(redis.command(&["GET", "kept"]).unwrap(), "42");
    assert_eq!(redis.url(), url);
    assert_ne!(redis.id().unwrap(), first);

    redis.command(&["INCR", "kept"]).unwrap();
    assert!(redis.stop(), "it stops in good order");
    assert!(!redis.is_running());
    redis.restart().unwrap();
    assert_eq!(redis.command(&["INCR", "kept"]).unwrap(), "44");
    redis.restart().unwrap();
    assert_eq!(redis.command(&["GET", "kept"]).unwrap(), "44", "one that runs is stopped first");
}

#[test]
fn a_restart_waits_until_its_port_is_free() {
    let mut redis = Redis::start_temporary().unwrap();
    redis.kill();
    let stranger = TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
    let restart = std::thread::spawn(move || redis.restart().map(|()| redis));
    std::thread::sleep(MOMENT);
    assert!(!restart.is_finished(), "it gave up, or took the stranger for itself");
    drop(stranger);
    assert!(restart.join().unwrap().unwrap().answers(PATIENCE));
}

#[test]
fn a_paused_server_does_not_answer_until_it_is_resumed() {
    let mut redis = Redis::start_temporary().unwrap();
    assert!(redis.answers(PATIENCE));
    redis.pause().unwrap();
    assert!(!redis.answers(MOMENT));
    assert!(redis.is_running());
    redis.resume().unwrap();
    assert!(redis.answers(PATIENCE));

    redis.pause().unwrap();
    assert!(redis.stop(), "a paused server stops in good order");
    assert!(matches!(redis.pause(), Err(Error::Io { .. })), "there is nothing to pause");
    redis.restart().unwrap();
    redis.pause().unwrap();
    let id = redis.id().unwrap();
    drop(redis);
    assert!(!is_alive(id), "a paused server outlived its owner");
}

#[test]
fn a_password_is_wanted() {
    let mut redis = Redis::start_temporary_with(&Options::default().password("s3\" cret")).unwrap();
    assert_eq!(redis.url(), format!("redis://:s3%22%20cret@127.0.0.1:{}", redis.port()));
    assert!(as_client(&redis, &[], &["PING"]).contains("NOAUTH"));
    assert!(as_client(&redis, &["-a", "wrong"], &["PING"]).contains("WRONGPASS"));
    assert_eq!(as_client(&redis, &["-a", "s3\" cret"], &["PING"]), "PONG");
    assert_eq!(redis.command(&["PING"]).unwrap(), "PONG");
    redis.restart().unwrap();
    assert!(redis.answers(PATIENCE));
}

#[test]
fn a_user_may_do_what_its_rules_say() {
    let options = Options::default().user("edge", "pass", "~edge:* +@read +@write").maxmemory_policy("allkeys-lru");
    let redis = Redis::start_temporary_with(&options).unwrap();
    assert_eq!(redis.url(), format!("redis://edge:pass@127.0.0.1:{}", redis.port()));
    let login = ["--user", "edge", "-a", "pass"];
    assert_eq!(as_client(&redis, &login, &["SET", "edge:1", "x"]), "OK");
    assert!(as_client(&redis, &login, &["SET", "other", "x"]).contains("NOPERM"));
    assert!(as_client(&redis, &login, &["CONFIG", "GET", "port"]).contains("NOPERM"));
    assert!(as_client(&redis, &[], &["PING"]).contains("NOAUTH"), "the default user is closed too");
    assert_eq!(redis.command(&["CONFIG", "GET", "maxmemory-policy"]).unwrap(), "maxmemory-policy\nallkeys-lru");
}

#[test]
fn a_wrong_setting_is_shown_with_what_redis_says_about_it() {
    let message = Redis::start_temporary_with(&Options::default().maxmemory_policy("bogus")).unwrap_err().to_string();
    assert!(message.contains("maxmemory-policy") && message.contains("argument"), "{message}");
}

#[test]
fn tls_is_spoken_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let tls = Tls::make(directory.path()).unwrap();
    let mut redis = Redis::start_temporary_with(&Options::default().tls(tls).password("secret")).unwrap();
    assert_eq!(redis.url(), format!("rediss://:secret@127.0.0.1:{}", redis.port()));
    assert_eq!(redis.command(&["SET", "key", "value"]).unwrap(), "OK");
    assert_ne!(as_client(&redis, &["-a", "secret"], &["PING"]), "PONG", "it answered without TLS");
    redis.restart().unwrap();
    assert_eq!(redis.command(&["GET", "key"]).unwrap(), "value");
    redis.pause().unwrap();
    assert!(!redis.answers(MOMENT));
}

/// A certificate for 127.0.0.1 that vouches for itself.
#[test]
fn three_nodes_are_a_cluster_and_share_the_keys() {
    let mut cluster = RedisCluster::start_temporary().unwrap();
    assert_eq!((cluster.urls().len(), cluster.nodes().len()), (3, 3));
    for node in cluster.nodes() {
        assert!(node.command(&["CLUSTER", "INFO"]).unwrap().contains("cluster_state:ok"));
    }
    let keys = |cluster: &RedisCluster| -> Vec<String> {
        cluster.nodes().iter().map(|node| node.command(&["DBSIZE"]).unwrap()).collect()
    };
    assert_eq!(cluster.nodes()[0].command(&["-c", "SET", "key", "value"]).unwrap(), "OK");
    let sizes = keys(&cluster);
    assert_eq!(sizes.iter().filter(|size| *size == "1").count(), 1, "{sizes:?}");
    for node in cluster.nodes() {
        assert_eq!(node.command(&["-c", "GET", "key"]).unwrap(), "value");
    }

    let holder = sizes.iter().position(|size| size == "1").unwrap();
    cluster.nodes_mut()[holder].stop();
    cluster.nodes_mut()[holder].restart().unwrap();
    cluster.wait_until_ok().unwrap();
    assert_eq!(cluster.nodes()[(holder + 1) % 3].command(&["-c", "GET", "key"]).unwrap(), "value");

    let ids: Vec<_> = cluster.nodes().iter().map(|node| node.id().unwrap()).collect();
    drop(cluster);
    assert!(!ids.into_iter().any(is_alive), "a node outlived its owner");
}

/// Runs itself as another process, which starts a server and is then killed.
#[test]
fn nothing_is_left_when_the_owner_is_killed() {
    const ROLE: &str = "TURNPIKE_TEST_REDIS_OWNER";
    if std::env::var_os(ROLE).is_some() {
        let mut redis = Redis::start_temporary().unwrap();
        // One that halts is the hardest to end.
        redis.pause().unwrap();
        println!("\nowned: {} {}", redis.id().unwrap(), redis.data_directory().display());
        std::thread::sleep(PATIENCE);
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner.args(["--exact", "redis::nothing_is_left_when_the_owner_is_killed", "--nocapture"]).env(ROLE, "1");
    let mut owner = owner.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let owned = lines.find_map(|line| line.strip_prefix("owned: ").map(str::to_owned)).unwrap();
    let (id, data) = owned.split_once(' ').unwrap();
    let (id, data) = (id.parse().unwrap(), PathBuf::from(data));
    assert!(is_alive(id) && data.is_dir());
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(wait_until(soon(), || !is_alive(id)), "the server outlived its owner");
    assert!(wait_until(soon(), || !data.exists()), "the data outlived their owner");
}
