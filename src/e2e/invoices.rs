//! Closing a month from the command line.

use crate::harness::{Up, turnpike};
use std::path::Path;

fn run(data_dir: &Path, args: &[&str]) -> String {
    let output = turnpike().arg("invoices").args(args).arg("--data-dir").arg(data_dir).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}\n{out}\n{err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_is_invoiced_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let up = Up::start(&data_dir, "echo");
    let month = up.sql("SELECT to_char(now() - interval '1 month', 'YYYY-MM')");
    assert_eq!(run(&data_dir, &["list"]), "no invoices\n");
    assert_eq!(run(&data_dir, &["close", &month]), "nothing to invoice\n");
    up.sql(&format!(
        "CREATE TABLE IF NOT EXISTS usage_records_y{} PARTITION OF usage_records
             FOR VALUES FROM ('{month}-01') TO (('{month}-01'::date + interval '1 month')::date);
         INSERT INTO usage_records (organization_id, model_id, date, requests, prompt_tokens, completion_tokens,
             total_tokens, cost_usd)
         SELECT o.id, m.id, '{month}-09', 3, 20, 10, 30, 12.345000000001 FROM organizations o, models m LIMIT 1",
        month.replace('-', "m"),
    ));
    let dry = run(&data_dir, &["close", &month, "--dry-run"]);
    assert!(dry.contains("made") && dry.contains("draft-"), "{dry}");
    assert_eq!(run(&data_dir, &["list"]), "no invoices\n");
    let closed = run(&data_dir, &["close", &month]);
    assert!(closed.contains("-000001") && closed.contains("12.35"), "{closed}");
    assert_eq!(run(&data_dir, &["close", &month]), "nothing to invoice\n", "once");
    let listed = run(&data_dir, &["list", "--status", "open", "--month", &month]);
    let id = listed.lines().nth(1).unwrap().split(' ').next().unwrap();
    let text = run(&data_dir, &["show", id]);
    assert!(text.contains("12.345000000001") && text.contains("due 12.35 USD"), "{text}");
    assert!(run(&data_dir, &["show", id, "--as", "html"]).starts_with("<!DOCTYPE html>"));
    assert!(run(&data_dir, &["show", id, "--as", "csv"]).starts_with("invoice_number,"));
}
