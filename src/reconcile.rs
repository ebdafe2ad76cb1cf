//! `turnpike reconcile`: the books of a day beside each other.

use crate::operator::{Operator, block_on, columns};
use crate::usage::day;
use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;
use std::io::Write as _;
use std::time::Duration;

/// As long as the control plane takes for it.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Compare the books of a day: edges, nodes, the usage ledger, daily sums, invoices.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Exit status 1 if any two books differ, by as little as a pico-dollar.

Examples:
  turnpike reconcile --day 2026-01-31          of the installation in ./.turnpike
  TURNPIKE_ADMIN_URL=https://control.example.com TURNPIKE_ADMIN_TOKEN=… turnpike reconcile --day 2026-01-31 --json")]
pub(crate) struct Args {
    #[command(flatten)]
    operator: Operator,
    /// The UTC day.
    #[arg(long, value_name = "DAY", value_parser = day)]
    day: String,
    /// Print the report as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Money is decimal text, passed on as it came.
#[derive(Deserialize)]
struct Sums {
    requests: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    cost_usd: String,
}

#[derive(Deserialize)]
struct Row {
    of: String,
    sums: Sums,
    ledger: Sums,
}

#[derive(Deserialize)]
struct Book {
    sums: Sums,
    difference: Sums,
    unequal: i64,
    first: Vec<Row>,
}

#[derive(Deserialize)]
struct Finding {
    event_id: String,
    node: String,
    ledger: Option<[i64; 2]>,
    at_node: Option<[i64; 2]>,
}

#[derive(Deserialize)]
struct Found {
    count: i64,
    first: Vec<Finding>,
}

#[derive(Deserialize)]
struct Nodes {
    sums: Sums,
    ledger: Sums,
    difference: Sums,
    unlike: Found,
    entries_without_event: Found,
    events_without_entry: Found,
    lost: i64,
}

#[derive(Deserialize)]
struct Invoice {
    invoice_number: String,
    charged: String,
    booked: String,
    difference: String,
}

#[derive(Deserialize)]
struct Report {
    day: String,
    complete: bool,
    equal: bool,
    ledger: Sums,
    edges: Book,
    usage_records: Book,
    nodes: Nodes,
    invoices: Vec<Invoice>,
}

/// `turnpike reconcile`
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let client = args.operator.client()?.within(DEADLINE);
    let day = format!("/reconcile?day={}", args.day);
    let answer: Value = block_on(async { client.get(&day).await.context("is the control plane running?") })?;
    let report = Report::deserialize(&answer).context("the control plane is of another version than this command")?;
    let text = if args.json { format!("{answer}\n") } else { describe(&report) };
    std::io::stdout().write_all(text.as_bytes())?;
    anyhow::ensure!(report.equal, "the books of {} differ", args.day);
    Ok(())
}

fn describe(report: &Report) -> String {
    let titles = [&report.day, "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS", "COST USD"].map(str::to_owned);
    let cells = |name: &str, sums: &Sums, cost: &str| {
        let [requests, prompt, completion] =
            [sums.requests, sums.prompt_tokens, sums.completion_tokens].map(|figure| figure.to_string());
        [name.to_owned(), requests, prompt, completion, cost.to_owned()]
    };
    let row = |name: &str, sums: &Sums| cells(name, sums, &sums.cost_usd);
    // Nodes know of no prices.
    let unpriced = |name: &str, sums: &Sums| cells(name, sums, "");
    let mut rows = vec![titles, row("usage ledger", &report.ledger)];
    for (name, book) in [("edges", &report.edges), ("daily sums", &report.usage_records)] {
        rows.extend([row(name, &book.sums), row("  difference", &book.difference)]);
    }
    let nodes = &report.nodes;
    rows.extend([
        unpriced("nodes", &nodes.sums),
        unpriced("  of the usage ledger", &nodes.ledger),
        unpriced("  difference", &nodes.difference),
    ]);
    let money = |name: String, amount: &str| [name, String::new(), String::new(), String::new(), amount.to_owned()];
    for Invoice { invoice_number, charged, booked, difference } in &report.invoices {
        rows.push(money(format!("invoice {invoice_number}"), charged));
        rows.push(money("  daily sums of its period".to_owned(), booked));
        rows.push(money("  difference".to_owned(), difference));
    }
    let mut text = columns(&rows, 1);
    name_differences(report, &mut text);
    if nodes.lost > 0 {
        text.push_str(&format!("\n{} events could not be compared: their node died meanwhile\n", nodes.lost));
    }
    if !report.complete {
        text.push_str("\nusage of this day may still come: differences may pass\n");
    }
    text
}

fn name_differences(report: &Report, text: &mut String) {
    let figures = |sums: &Sums| {
        let Sums { requests, prompt_tokens, completion_tokens, cost_usd } = sums;
        format!("{requests} requests, {prompt_tokens} + {completion_tokens} tokens, {cost_usd} USD")
    };
    for (name, book) in [("edges", &report.edges), ("daily sums", &report.usage_records)] {
        if book.unequal == 0 {
            continue;
        }
        text.push_str(&format!("\n{name}: {} rows differ\n", book.unequal));
        for Row { of, sums, ledger } in &book.first {
            text.push_str(&format!("  {of}: {}; the usage ledger has {}\n", figures(sums), figures(ledger)));
        }
    }
    let tokens = |tokens: &Option<[i64; 2]>| match tokens {
        Some([prompt, completion]) => format!("{prompt} + {completion} tokens"),
        None => "nothing".to_owned(),
    };
    for (name, found) in [
        ("events with other tokens at their node", &report.nodes.unlike),
        ("entries of nodes without an event", &report.nodes.entries_without_event),
        ("events without an entry at their node", &report.nodes.events_without_entry),
    ] {
        if found.count == 0 {
            continue;
        }
        text.push_str(&format!("\n{name}: {}\n", found.count));
        for Finding { event_id, node, ledger, at_node } in &found.first {
            let (ledger, at_node) = (tokens(ledger), tokens(at_node));
            text.push_str(&format!("  {event_id} at {node}: {at_node}; the usage ledger has {ledger}\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(edge_tokens: i64) -> Report {
        let sums = |prompt: i64, cost: &str| json!({"requests": 2, "prompt_tokens": prompt, "completion_tokens": 5, "cost_usd": cost});
        let none = json!({"count": 0, "first": []});
        let zero = json!({"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": "0"});
        let difference =
            json!({"requests": 0, "prompt_tokens": edge_tokens - 10, "completion_tokens": 0, "cost_usd": "0"});
        let rows = json!([{"of": "e1", "sums": sums(edge_tokens, "0.1"), "ledger": sums(10, "0.1")}]);
        let unequal = i64::from(edge_tokens != 10);
        let first = if unequal == 0 { json!([]) } else { rows };
        let named = json!({"count": 12, "first": [{"event_id": "0-1", "node": "n1", "at_node": [3, 4]}]});
        let document = json!({
            "day": "2026-01-31", "complete": true, "equal": edge_tokens == 10, "ledger": sums(10, "0.1"),
            "edges": {"sums": sums(edge_tokens, "0.1"), "difference": difference, "unequal": unequal, "first": first},
            "usage_records": {"sums": sums(10, "0.1"), "difference": zero, "unequal": 0, "first": []},
            "nodes": {
                "sums": sums(10, "0"), "ledger": sums(10, "0"), "difference": zero, "unlike": none,
                "entries_without_event": if unequal == 0 { &none } else { &named },
                "events_without_entry": none, "lost": unequal,
            },
            "invoices": [{"invoice_number": "TP-1", "charged": "0.1", "booked": "0.1", "difference": "0"}],
        });
        Report::deserialize(&document).unwrap()
    }

    #[test]
    fn equal_books_are_a_table_and_nothing_more() {
        let text = describe(&report(10));
        assert_eq!(text.lines().count(), 12, "{text}");
        assert!(text.starts_with("2026-01-31") && text.contains("\nusage ledger"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("  difference")).count(), 4);
    }

    #[test]
    fn differences_are_named() {
        let text = describe(&report(11));
        for part in [
            "edges: 1 rows differ\n  e1: 2 requests, 11 + 5 tokens, 0.1 USD; the usage ledger has 2 requests, 10 + 5",
            "entries of nodes without an event: 12\n  0-1 at n1: 3 + 4 tokens; the usage ledger has nothing",
            "1 events could not be compared",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
