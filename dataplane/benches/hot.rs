//! The pieces that every request goes through: `cargo bench -p turnpike-dataplane --features bench`.

use criterion::{Criterion, criterion_group, criterion_main};
use turnpike_config::RateLimits;
use turnpike_dataplane::bench::{Admission, HotPath};

/// A share that is empty waits for its grant, with a timer.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_time().build()
}

type Stage = fn(&HotPath) -> bool;

/// The admission path, stage by stage and as a whole.
fn admission(criterion: &mut Criterion) {
    let runtime = runtime();
    let _inside = runtime.as_ref().map(|runtime| runtime.enter()).map_err(ToString::to_string);
    for (size, bytes) in [("1 KB", 1 << 10), ("16 KB", 16 << 10)] {
        let path = HotPath::new(bytes).filter(HotPath::request);
        assert!(path.is_some(), "there is no such deployment, or it refuses");
        let Some(path) = path else { return };
        let stages: [(&str, Stage); 6] = [
            ("auth", HotPath::auth),
            ("auth and limits", HotPath::limit),
            ("peek", HotPath::peek),
            ("cache key", HotPath::cache_key),
            ("balance over 8 nodes", HotPath::balance),
            ("all of admission", HotPath::request),
        ];
        for (name, stage) in stages {
            criterion.bench_function(&format!("{name}, {size}"), |bench| bench.iter(|| stage(&path)));
        }
    }
}

/// What limits add to a request.
fn limits(criterion: &mut Criterion) {
    let runtime = runtime();
    let _inside = runtime.as_ref().map(|runtime| runtime.enter()).map_err(ToString::to_string);
    let none = RateLimits::default();
    let rates = RateLimits {
        requests_per_minute: Some(u32::MAX),
        tokens_per_minute: Some(u32::MAX),
        concurrent_requests: None,
    };
    let all = RateLimits { concurrent_requests: Some(1_000), ..rates };
    let cases = [
        ("no limits", none, none),
        ("requests and tokens of key and organization", rates, none),
        ("the same within the model too", rates, rates),
        ("and requests at once in all four", all, all),
    ];
    for (name, limits, within) in cases {
        let admission = Admission::new(limits, within);
        assert!(admission.request(), "{name}: refused");
        criterion.bench_function(name, |bench| bench.iter(|| admission.request()));
    }
}

/// What is looked at of every answer.
fn answers(criterion: &mut Criterion) {
    const USAGE: &str = r#""usage":{"prompt_tokens":5,"completion_tokens":64,"total_tokens":69}"#;
    let event = |content: &str| {
        format!("data: {{\"id\":\"1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{content}\"}}}}]}}\n\n")
    };
    let stream = event("token ").repeat(64) + &format!("data: {{\"choices\":[],{USAGE}}}\n\ndata: [DONE]\n\n");
    let document = format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}],{USAGE}}}"#, "token ".repeat(170));
    let (stream, document) = (bytes::Bytes::from(stream), bytes::Bytes::from(document));
    criterion.bench_function("usage of a document of 1 KB", |bench| {
        bench.iter(|| {
            let mut tap = turnpike_config::Tap::json();
            tap.pass(Some(document.clone()), true);
            tap.usage()
        });
    });
    criterion.bench_function("usage of a stream of 64 tokens", |bench| {
        bench.iter(|| {
            let mut tap = turnpike_config::Tap::stream(true);
            tap.pass(Some(stream.clone()), true);
            tap.usage()
        });
    });
}

criterion_group!(benches, admission, limits, answers);
criterion_main!(benches);
