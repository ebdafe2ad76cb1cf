//! `turnpike invoices`: what is asked of whom, and closing months by hand.

use crate::admin::Client;
use crate::operator::{Operator, block_on, columns};
use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write as _;

/// List, show and make invoices.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  turnpike invoices list --status open
  turnpike invoices close 2026-01 --dry-run
  turnpike invoices show 0198c6f0-… --as html > invoice.html")]
pub(crate) struct Args {
    #[command(flatten)]
    operator: Operator,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// List invoices, the newest first.
    List {
        /// Only of this organization.
        #[arg(long, value_name = "ID", value_parser = word)]
        organization: Option<String>,
        /// Only with this status.
        #[arg(long, value_parser = ["draft", "open", "paid", "void", "uncollectible"])]
        status: Option<String>,
        /// Only of this calendar month, such as 2026-01.
        #[arg(long, value_parser = word)]
        month: Option<String>,
        /// Print a JSON array instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Show one invoice.
    Show {
        /// Its id.
        #[arg(value_parser = word)]
        id: String,
        /// In which form.
        #[arg(long = "as", default_value = "text", value_parser = ["text", "json", "html", "csv"])]
        form: String,
    },
    /// Close a calendar month that is over (UTC): make invoices of what was used.
    Close {
        /// Such as 2026-01.
        #[arg(value_parser = word)]
        month: String,
        /// Only of this organization.
        #[arg(long, value_name = "ID", value_parser = word)]
        organization: Option<String>,
        /// Only show what would be invoiced.
        #[arg(long)]
        dry_run: bool,
        /// Also when edges may still ship usage of the month: what comes later goes on the next invoice.
        #[arg(long)]
        force: bool,
    },
}

/// What a path and a query take as it is.
fn word(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    if plain { Ok(text.to_owned()) } else { Err("expected letters, digits and hyphens".to_owned()) }
}

/// An invoice, as far as it is shown. Money is decimal text, passed on as it came.
#[derive(Debug, Deserialize)]
struct Invoice {
    id: String,
    invoice_number: String,
    status: String,
    buyer: Buyer,
    period_start: String,
    period_end: String,
    due_date: Option<String>,
    line_items: Vec<Line>,
    discount_amount: String,
    tax_amount: String,
    total_amount: String,
    credit_applied: String,
    amount_due: String,
    checksum_valid: bool,
}

#[derive(Debug, Deserialize)]
struct Buyer {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Line {
    description: String,
    requests: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    exact_amount: String,
    amount: String,
}

#[derive(Deserialize)]
struct Closings {
    data: Vec<Closing>,
}

#[derive(Deserialize)]
struct Closing {
    organization_id: String,
    outcome: String,
    reason: Option<String>,
    invoice: Option<Invoice>,
}

/// `turnpike invoices`
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let client = args.operator.client()?;
    let text = block_on(answer(&client, &args.command))?;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

async fn answer(client: &Client, command: &Command) -> anyhow::Result<String> {
    match command {
        Command::List { organization, status, month, json } => {
            let filters = [("organization", organization), ("status", status), ("month", month)];
            let query: Vec<_> =
                filters.iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))).collect();
            let path = format!("/invoices?{}", query.join("&"));
            let found: Vec<Value> =
                client.all(path.trim_end_matches('?')).await.context("is the control plane running?")?;
            if *json {
                return Ok(format!("{}\n", serde_json::to_string(&found)?));
            }
            let found: Result<Vec<Invoice>, _> = found.into_iter().map(serde_json::from_value).collect();
            Ok(list(&found?))
        }
        Command::Show { id, form } => match form.as_str() {
            "text" => Ok(sheet(&client.get(&format!("/invoices/{id}")).await?)),
            "json" => {
                let invoice: Value = client.get(&format!("/invoices/{id}")).await?;
                Ok(format!("{}\n", serde_json::to_string_pretty(&invoice)?))
            }
            form => Ok(client.text(&format!("/invoices/{id}.{form}")).await?),
        },
        Command::Close { month, organization, dry_run, force } => {
            let body = json!({"month": month, "organization_id": organization, "dry_run": dry_run, "force": force});
            Ok(closings(&client.post("/invoices/close", &body).await?))
        }
    }
}

fn list(invoices: &[Invoice]) -> String {
    const TITLES: [&str; 8] = ["ID", "NUMBER", "ORGANIZATION", "PERIOD", "STATUS", "DUE", "TOTAL USD", "DUE USD"];
    if invoices.is_empty() {
        return "no invoices\n".to_owned();
    }
    let row = |invoice: &Invoice| {
        let status = if invoice.checksum_valid { invoice.status.clone() } else { format!("{}!", invoice.status) };
        [
            invoice.id.clone(),
            invoice.invoice_number.clone(),
            invoice.buyer.name.clone(),
            invoice.period_start.chars().take(7).collect(),
            status,
            invoice.due_date.clone().unwrap_or_default(),
            invoice.total_amount.clone(),
            invoice.amount_due.clone(),
        ]
    };
    let rows: Vec<_> = std::iter::once(TITLES.map(str::to_owned)).chain(invoices.iter().map(row)).collect();
    columns(&rows, 6)
}

fn sheet(invoice: &Invoice) -> String {
    const TITLES: [&str; 6] = ["LINE", "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS", "EXACT USD", "USD"];
    let row = |line: &Line| {
        let [requests, prompt, completion] =
            [line.requests, line.prompt_tokens, line.completion_tokens].map(|count| count.to_string());
        [line.description.clone(), requests, prompt, completion, line.exact_amount.clone(), line.amount.clone()]
    };
    let rows: Vec<_> = std::iter::once(TITLES.map(str::to_owned)).chain(invoice.line_items.iter().map(row)).collect();
    let warning = if invoice.checksum_valid { "" } else { "IT DOES NOT MATCH ITS CHECKSUM: it was tampered with\n" };
    let due = invoice.due_date.as_deref().unwrap_or("no day yet");
    format!(
        "{} ({}) for {}, {} to {}, due {due}\n{warning}{}discount {}, tax {}, total {}, paid ahead {}, due {} USD\n",
        invoice.invoice_number,
        invoice.status,
        invoice.buyer.name,
        invoice.period_start,
        invoice.period_end,
        columns(&rows, 1),
        invoice.discount_amount,
        invoice.tax_amount,
        invoice.total_amount,
        invoice.credit_applied,
        invoice.amount_due,
    )
}

fn closings(closings: &Closings) -> String {
    const TITLES: [&str; 4] = ["ORGANIZATION", "OUTCOME", "NUMBER", "TOTAL USD"];
    if closings.data.is_empty() {
        return "nothing to invoice\n".to_owned();
    }
    let row = |closing: &Closing| {
        let invoice = closing.invoice.as_ref();
        let name = invoice.map_or(&closing.organization_id, |invoice| &invoice.buyer.name);
        let outcome = closing
            .reason
            .as_ref()
            .map_or_else(|| closing.outcome.clone(), |reason| format!("{}: {reason}", closing.outcome));
        let text = |field: fn(&Invoice) -> &String| invoice.map(field).cloned().unwrap_or_default();
        [name.clone(), outcome, text(|invoice| &invoice.invoice_number), text(|invoice| &invoice.total_amount)]
    };
    let rows: Vec<_> = std::iter::once(TITLES.map(str::to_owned)).chain(closings.data.iter().map(row)).collect();
    columns(&rows, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoice() -> Invoice {
        let line = json!({"description": "m, 2026-01", "requests": 2, "prompt_tokens": 100, "completion_tokens": 10,
            "exact_amount": "10.004999999999", "amount": "10"});
        let invoice = json!({"id": "0198", "invoice_number": "TP-2026-000001", "status": "open",
            "buyer": {"name": "Acme"}, "period_start": "2026-01-01", "period_end": "2026-01-31",
            "due_date": "2026-02-15", "line_items": [line], "discount_amount": "0", "tax_amount": "1.9",
            "total_amount": "11.9", "credit_applied": "0", "amount_due": "11.9", "checksum_valid": false});
        serde_json::from_value(invoice).expect("an invoice")
    }

    #[test]
    fn money_is_untouched_and_what_is_wrong_is_said() {
        let text = sheet(&invoice());
        assert!(text.contains("10.004999999999") && text.contains("tampered"), "{text}");
        let text = list(&[invoice()]);
        assert!(text.contains("open!") && text.contains("2026-01 ") && text.ends_with("11.9\n"), "{text}");
        let refused = Closing {
            organization_id: "1".to_owned(),
            outcome: "refused".to_owned(),
            reason: Some("why".to_owned()),
            invoice: None,
        };
        assert!(closings(&Closings { data: vec![refused] }).contains("refused: why"));
        assert_eq!(closings(&Closings { data: Vec::new() }), "nothing to invoice\n");
    }

    #[test]
    fn what_goes_into_a_path_is_plain() {
        assert!(word("2026-01").is_ok());
        for bad in ["", "a/b", "a?b", "a&b=c", "ü"] {
            assert!(word(bad).is_err(), "{bad}");
        }
    }
}
