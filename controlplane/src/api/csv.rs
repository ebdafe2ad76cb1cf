//! Sums as CSV (RFC 4180), for spreadsheets.

use crate::store::usage::UsageSum;
use axum::response::{IntoResponse, Response};
use chrono::SecondsFormat;
use http::header;

pub(super) const CONTENT_TYPE: &str = "text/csv; charset=utf-8; header=present";
/// Always the same columns, so that what reads the file need not care what was grouped by; those are empty otherwise.
const COLUMNS: &str = "organization_id,model_id,date,hour,price_version,api_key_id,requests,prompt_tokens,\
                       completion_tokens,total_tokens,cost_usd";

/// The answer as CSV.
pub(super) fn answer(sums: &[UsageSum]) -> Response {
    let lines = [COLUMNS.to_owned()].into_iter().chain(sums.iter().map(line));
    let text: String = lines.flat_map(|line| [line, "\r\n".to_owned()]).collect();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

fn line(sum: &UsageSum) -> String {
    fn text(value: Option<impl ToString>) -> String {
        value.map(|value| value.to_string()).unwrap_or_default()
    }
    [
        text(sum.organization_id),
        quoted(&text(sum.model_id.as_ref())),
        text(sum.date),
        text(sum.hour.map(|hour| hour.to_rfc3339_opts(SecondsFormat::Secs, true))),
        text(sum.price_version),
        text(sum.api_key_id),
        sum.requests.to_string(),
        sum.prompt_tokens.to_string(),
        sum.completion_tokens.to_string(),
        sum.total_tokens.to_string(),
        sum.cost_usd.normalize().to_string(),
    ]
    .join(",")
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_line_is_quoted() {
        assert_eq!(quoted("org/model:1"), "org/model:1");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
