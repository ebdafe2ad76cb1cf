//! `turnpike usage`: what was used, and what it cost, as a table.

use crate::admin;
use crate::operator::{Operator, block_on, columns};
use anyhow::Context as _;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;

/// Show what was used, and what it cost.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  turnpike usage                               of the installation in ./.turnpike
  turnpike usage --from 2026-01-01 --to 2026-02-01 --json
  TURNPIKE_ADMIN_URL=https://control.example.com TURNPIKE_ADMIN_TOKEN=… turnpike usage")]
pub(crate) struct Args {
    #[command(flatten)]
    operator: Operator,
    /// First UTC day, such as 2026-01-31; otherwise 30 days ago.
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<String>,
    /// Day after the last one; otherwise tomorrow.
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<String>,
    /// Print a JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

/// Whether an argument is a UTC day.
pub(crate) fn day(text: &str) -> Result<String, String> {
    let digits = |part: &str, count| part.len() == count && part.bytes().all(|c| c.is_ascii_digit());
    match text.split('-').collect::<Vec<_>>()[..] {
        [year, month, day] if digits(year, 4) && digits(month, 2) && digits(day, 2) => Ok(text.to_owned()),
        _ => Err("expected a day such as 2026-01-31".to_owned()),
    }
}

#[derive(Deserialize)]
struct Sums {
    data: Vec<Sum>,
}

/// Usage of one organization and model on one day. Money is decimal text, passed on as it came.
#[derive(Debug, Deserialize, Serialize)]
struct Sum {
    organization_id: String,
    /// The organization's short name.
    #[serde(default)]
    organization: String,
    model_id: String,
    date: String,
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    cost_usd: String,
}

#[derive(Deserialize)]
struct Organization {
    id: String,
    slug: String,
}

/// `turnpike usage`
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let client = args.operator.client()?;
    let sums = block_on(fetch(&client, args))?;
    let text = if args.json { format!("{}\n", serde_json::to_string(&sums)?) } else { table(&sums) };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

async fn fetch(client: &admin::Client, args: &Args) -> anyhow::Result<Vec<Sum>> {
    let mut path = "/usage?group_by=organization,model,day".to_owned();
    for (name, value) in [("from", &args.from), ("to", &args.to)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={value}"));
        }
    }
    let Sums { mut data } = client.get(&path).await.context("is the control plane running?")?;
    let organizations: Vec<Organization> = client.all("/organizations").await?;
    let names: HashMap<String, String> = organizations.into_iter().map(|org| (org.id, org.slug)).collect();
    for sum in &mut data {
        sum.organization = names.get(&sum.organization_id).unwrap_or(&sum.organization_id).clone();
    }
    data.sort_by(|a, b| (&a.organization, &a.model_id, &a.date).cmp(&(&b.organization, &b.model_id, &b.date)));
    Ok(data)
}

/// Tokens of each day from the first to the last that has any, as bars of eight heights; the highest is named.
fn sparkline(sums: &[Sum]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut days: BTreeMap<NaiveDate, u64> = BTreeMap::new();
    for sum in sums {
        // The API's days are well formed; one that is not has no place on a line of time.
        if let Ok(day) = sum.date.parse() {
            *days.entry(day).or_default() += sum.prompt_tokens.saturating_add(sum.completion_tokens);
        }
    }
    let (Some(first), Some(last)) = (days.keys().next(), days.keys().next_back()) else { return String::new() };
    let highest = days.values().copied().max().unwrap_or(0).max(1);
    let bar = |day: NaiveDate| match days.get(&day).copied().unwrap_or(0) {
        0 => ' ',
        tokens => {
            let eighths = (u128::from(tokens) * BARS.len() as u128).div_ceil(highest.into());
            BARS[usize::try_from(eighths).unwrap_or(1).clamp(1, BARS.len()) - 1]
        }
    };
    let bars: String = first.iter_days().take_while(|day| day <= last).map(bar).collect();
    format!("\ntokens a day  {first} {bars} {last}  most: {highest}\n")
}

fn table(sums: &[Sum]) -> String {
    const TITLES: [&str; 7] =
        ["ORGANIZATION", "MODEL", "DAY", "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS", "COST USD"];
    /// Columns up to this one are text, the others are numbers.
    const NUMBERS_FROM: usize = 3;
    if sums.is_empty() {
        return "nothing was used in this time\n".to_owned();
    }
    let row = |sum: &Sum| {
        let Sum { organization, model_id, date, requests, prompt_tokens, completion_tokens, cost_usd, .. } = sum;
        let [requests, prompt, completion] = [requests, prompt_tokens, completion_tokens].map(u64::to_string);
        [organization.clone(), model_id.clone(), date.clone(), requests, prompt, completion, cost_usd.clone()]
    };
    let rows: Vec<_> = std::iter::once(TITLES.map(str::to_owned)).chain(sums.iter().map(row)).collect();
    columns(&rows, NUMBERS_FROM) + &sparkline(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_money_is_untouched() {
        let sum = |model: &str, requests, cost: &str| Sum {
            organization_id: "0".to_owned(),
            organization: "default".to_owned(),
            model_id: model.to_owned(),
            date: "2026-01-31".to_owned(),
            requests,
            prompt_tokens: 10,
            completion_tokens: 20,
            cost_usd: cost.to_owned(),
        };
        let text = table(&[sum("a-long-model-name", 1, "0.000700"), sum("echo", 12_345, "12.5")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[..3].iter().all(|line| line.len() == lines[0].len()), "{text}");
        assert_eq!(lines[4], "tokens a day  2026-01-31 █ 2026-01-31  most: 60");
        assert!(lines[1].ends_with("0.000700") && lines[2].contains("12345"), "{text}");
        assert_eq!(table(&[]), "nothing was used in this time\n");
    }

    #[test]
    fn every_day_has_its_place_on_the_line() {
        let sum = |date: &str, tokens| Sum {
            organization_id: "0".to_owned(),
            organization: "default".to_owned(),
            model_id: "m".to_owned(),
            date: date.to_owned(),
            requests: 1,
            prompt_tokens: tokens,
            completion_tokens: 0,
            cost_usd: "0".to_owned(),
        };
        let line = sparkline(&[
            sum("2026-02-27", 1),
            sum("2026-03-01", 8_000),
            sum("2026-03-01", 0),
            sum("2026-03-02", 4_000),
        ]);
        assert_eq!(line, "\ntokens a day  2026-02-27 ▁ █▄ 2026-03-02  most: 8000\n");
        assert_eq!(sparkline(&[]), "");
    }

    #[test]
    fn days_are_checked() {
        assert!(day("2026-01-31").is_ok());
        for bad in ["", "yesterday", "2026-1-31", "2026-01-31&x=1", "2026-01"] {
            assert!(day(bad).is_err(), "{bad}");
        }
    }
}
