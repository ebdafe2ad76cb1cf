//! The script inside Redis and its twin in Rust, held against each other; and the two ways to keep buckets, one against
//! the other.

use super::ask::{Ask, Floor, Refill, Terms};
use super::clock::Vouch;
use super::ledger::Ledger;
use super::simulation::Random;
use crate::redis_client::{RedisClient, Script};
use crate::settings::RedisSettings;
use std::time::Duration;
use turnpike_parts::redis::Redis;

/// The script with a clock and a run that the test sets.
fn with_clock(text: &str) -> &'static str {
    let text = text
        .replace("redis.call('TIME')", "{ tonumber(ARGV[15]), tonumber(ARGV[16]) }")
        .replace("string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')", "ARGV[17]");
    assert!(text.contains("ARGV[15]") && text.contains("ARGV[17]"), "the script reads its clock in another way");
    Box::leak(text.into_boxed_str())
}

fn client(redis: &Redis) -> RedisClient {
    let urls = vec![redis.url().to_owned()];
    let settings = RedisSettings { urls, cluster: false, ca: None, slow: Duration::from_millis(50), edges: 1 };
    RedisClient::new(&settings).unwrap()
}

struct Step {
    edge: &'static str,
    now: i64,
    run: &'static str,
    ask: Ask,
}

fn draw(random: &mut Random, refill: Refill, now: &mut i64, last: &[super::ask::Grant]) -> Step {
    *now += i64::try_from(random.below(3_000_000)).unwrap() - if random.below(30) == 0 { 3_600_000_000 } else { 0 };
    let run = if random.below(2_000) == 0 { "second" } else { "first" };
    let seen = last.last();
    let vouch = match random.below(10) {
        0 => Vouch::NOTHING,
        1 => Vouch { from: *now - 1_000, not_after: *now + 5_000_000 },
        _ => Vouch { from: *now - i64::try_from(random.below(90_000_000)).unwrap(), not_after: *now - 500 },
    };
    Step {
        edge: ["a", "b", "c"][usize::try_from(random.below(3)).unwrap()],
        now: *now,
        run,
        ask: Ask {
            terms: Terms { capacity: 600.0, refill },
            want: random.below(80),
            give_back: random.below(20),
            outstanding: random.below(60),
            life_us: 2_000_000,
            generation: seen.map(|grant| grant.generation.clone()).unwrap_or_default(),
            spent: random.below(4),
            credited: seen.map_or(0.0, |grant| grant.credited),
            floor: Floor { units: 40.0, complete_to: *now - 1_000_000 },
            vouch,
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_in_redis_and_its_twin_agree_to_the_unit() {
    let redis = tokio::task::spawn_blocking(|| Redis::start_temporary().unwrap()).await.unwrap();
    let (client, script) = (client(&redis), Script::new(with_clock(include_str!("bucket.lua"))));
    let mut random = Random(11);
    for (key, refill) in [("r", Refill::PerSecond(10.0)), ("c", Refill::OnRelease), ("s", Refill::Never)] {
        let mut ledger = Ledger::default();
        let (mut now, mut grants, mut granted) = (1_700_000_000_000_000, Vec::new(), 0);
        for step in 0..700 {
            let Step { edge, now, run, ask } = draw(&mut random, refill, &mut now, &grants);
            let expected = ledger.answer(key, edge, &ask, now, run);
            let mut arguments = ask.arguments(edge);
            arguments.extend([(now / 1_000_000).to_string(), (now % 1_000_000).to_string(), run.to_owned()]);
            let sentinel = format!("sentinel-{key}");
            let found: (u64, f64, i64, String, f64, String) =
                client.run(&script, &[key, &sentinel], &arguments).await.unwrap();
            let context = format!("{key}, step {step}: {ask:?}\n{expected:?}\n{found:?}");
            assert_eq!(
                (found.0, found.2, &found.3),
                (expected.granted, expected.at, &expected.generation),
                "{context}"
            );
            assert!((found.1 - expected.left).abs() < 1e-6 && (found.4 - expected.credited).abs() < 1e-6, "{context}");
            granted += found.0;
            grants.push(expected);
        }
        assert!(granted > 100, "{key}: hardly anything was granted: {granted}");
    }
}
