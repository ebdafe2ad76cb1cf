//! Reads the few figures we want out of an engine's metrics page (Prometheus text exposition format).

/// Longest page that is read, bytes. vLLM's histograms make some hundred kilobytes.
pub(crate) const MAX_PAGE: usize = 4 << 20;

/// Values of one metric: a sample per label set, such as one per worker behind the engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Samples {
    /// For things that add up: requests, tokens.
    pub(crate) sum: f64,
    /// For shares: the fullest.
    pub(crate) max: f64,
}

/// The samples of the first of `names` that the page has. Values that are no finite number are passed over.
pub(crate) fn find(page: &str, names: &[&str]) -> Option<Samples> {
    names.iter().find_map(|name| page.lines().filter_map(|line| sample(line, name)).fold(None, add))
}

fn add(samples: Option<Samples>, value: f64) -> Option<Samples> {
    let samples = samples.unwrap_or(Samples { sum: 0.0, max: value });
    Some(Samples { sum: samples.sum + value, max: samples.max.max(value) })
}

/// `name value [timestamp]` or `name{labels} value [timestamp]`.
fn sample(line: &str, name: &str) -> Option<f64> {
    let rest = line.trim_start().strip_prefix(name)?;
    let rest = match rest.strip_prefix('{') {
        Some(labels) => &labels[labels_end(labels)?..],
        // Otherwise it is another metric whose name only begins alike.
        None => rest.starts_with([' ', '\t']).then_some(rest)?,
    };
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// Offset just behind the brace that closes the labels; braces and quotes may stand inside quoted values.
fn labels_end(labels: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in labels.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}\"b 9"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 3.0 1700000000000
vllm:num_requests_running_max{engine="0"} 99
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 5e-1
plain 7
broken{a="1" 5
nan_value NaN
mixed{a="1"} +Inf
mixed{a="2"} -1
"#;

    #[test]
    fn samples_of_one_metric_are_put_together() {
        assert_eq!(find(PAGE, &["vllm:num_requests_running"]), Some(Samples { sum: 5.0, max: 3.0 }));
        assert_eq!(find(PAGE, &["vllm:kv_cache_usage_perc"]), Some(Samples { sum: 0.75, max: 0.5 }));
        assert_eq!(find(PAGE, &["plain"]), Some(Samples { sum: 7.0, max: 7.0 }));
        assert_eq!(find(PAGE, &["mixed"]), Some(Samples { sum: -1.0, max: -1.0 }));
    }

    #[test]
    fn the_first_known_name_counts() {
        assert_eq!(find(PAGE, &["absent", "plain"]).map(|s| s.sum), Some(7.0));
        assert_eq!(find(PAGE, &[]), None);
    }

    #[test]
    fn what_is_no_number_is_no_sample() {
        for name in ["broken", "nan_value", "vllm", "pla", "# HELP", ""] {
            assert_eq!(find(PAGE, &[name]), None, "{name}");
        }
    }
}
