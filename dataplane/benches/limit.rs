//! What limits add to a request: `cargo bench -p turnpike-dataplane --features bench`.

use criterion::{Criterion, criterion_group, criterion_main};
use turnpike_config::RateLimits;
use turnpike_dataplane::bench::Admission;

fn limits(criterion: &mut Criterion) {
    // A share that is empty waits for its grant, with a timer.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
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

criterion_group!(benches, limits);
criterion_main!(benches);
