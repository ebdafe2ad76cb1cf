//! Whatever happens in whatever order: no pico-dollar is charged twice, lost, or made up.

use crate::invoices::{close, first_of};
use crate::plane::{OWNER, Plane, Tenant};
use crate::prepaid::{balance, top_up};
use chrono::Days;
use reqwest::Method;
use serde_json::json;
use turnpike_config::Usd;
use uuid::Uuid;

/// Steps of one history.
const STEPS: u32 = 60;

/// A generator of histories that is the same every time (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Usage as the books have it: on the day, or after its invoice beside it.
async fn uses(plane: &Plane, tenant: &Tenant, back: u32, dice: &mut Dice) -> Usd {
    let day = first_of(back) + Days::new(dice.below(20));
    let cost = Usd { pico: i128::from(dice.below(3_000_000_000_000)) };
    let sql = if back > 0 && invoiced(plane, tenant, back).await {
        "INSERT INTO usage_adjustments (organization_id, model_id, date, requests, prompt_tokens, completion_tokens,
             cost_usd) VALUES ($1, 'm', $2, 1, 1, 1, $3::text::numeric)"
    } else {
        "INSERT INTO usage_records (organization_id, model_id, date, requests, cost_usd)
             VALUES ($1, 'm', $2, 1, $3::text::numeric)
         ON CONFLICT (organization_id, model_id, date) DO UPDATE SET requests = usage_records.requests + 1,
             cost_usd = usage_records.cost_usd + excluded.cost_usd"
    };
    let organization: Uuid = tenant.organization.parse().unwrap();
    sqlx::query(sql).bind(organization).bind(day).bind(cost.to_string()).execute(&plane.pool).await.unwrap();
    cost
}

async fn invoiced(plane: &Plane, tenant: &Tenant, back: u32) -> bool {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM invoices WHERE organization_id = $1::text::uuid AND period_start = $2
             AND status IN ('open', 'paid', 'uncollectible'))",
    )
    .bind(&tenant.organization)
    .bind(first_of(back))
    .fetch_one(&plane.pool)
    .await
    .unwrap()
}

/// Sums over the invoices that stand: what they charge exactly, what was paid from money paid ahead, and what was waived
/// of what their lines were rounded up by.
async fn standing(plane: &Plane, tenant: &Tenant) -> (Usd, Usd, Usd) {
    let (exact, credit, waived): (String, String, String) = sqlx::query_as(
        "SELECT coalesce(sum(exact_total), 0)::text, (coalesce(sum(credit_applied), 0) - (
             SELECT coalesce(sum(amount), 0) FROM prepaid_entries
             WHERE organization_id = $1::text::uuid AND idempotency_key LIKE 'payment:%'))::text, (
             SELECT coalesce(sum(amount), 0) FROM prepaid_entries
             WHERE organization_id = $1::text::uuid AND kind = 'rounding')::text FROM invoices
         WHERE organization_id = $1::text::uuid AND status NOT IN ('void', 'draft')",
    )
    .bind(&tenant.organization)
    .fetch_one(&plane.pool)
    .await
    .unwrap();
    (exact.parse().unwrap(), credit.parse().unwrap(), waived.parse().unwrap())
}

async fn left(plane: &Plane, tenant: &Tenant) -> Usd {
    balance(plane, tenant).await.as_str().unwrap().parse().unwrap()
}

async fn history(plane: &Plane, seed: u64) {
    let mut dice = Dice(seed);
    let tenant = plane.tenant(&format!("seed-{seed}")).await;
    let path = format!("/organizations/{}/billing", tenant.organization);
    let terms = json!({"discount_permille": dice.below(300), "tax_rate": format!("{}.125", dice.below(30))});
    plane.call(Method::PATCH, &path, Some(terms)).await;
    let mut paid: Usd = "5".parse().unwrap();
    top_up(plane, &tenant, "5", "first").await;
    // It has paid ahead since before the first of these months.
    sqlx::raw_sql(
        "ALTER TABLE prepaid_entries DISABLE TRIGGER USER;
         UPDATE prepaid_entries SET day = day - 150 WHERE kind = 'opening' AND day > now() - interval '100 days';
         ALTER TABLE prepaid_entries ENABLE TRIGGER USER;
         UPDATE billing_accounts SET prepaid_since = prepaid_since - 150 WHERE prepaid_since > now() - interval '100 days';",
    )
    .execute(&plane.pool)
    .await
    .unwrap();
    let mut used = Usd::ZERO;
    for step in 0..STEPS {
        let back = u32::try_from(dice.below(4)).unwrap();
        let what = dice.below(10);
        match what {
            0..5 => used = used.checked_add(uses(plane, &tenant, back, &mut dice).await).unwrap(),
            5 => {
                let amount = Usd { pico: i128::from(dice.below(8_000_000_000_000) + 1) };
                top_up(plane, &tenant, &amount.to_string(), &format!("step-{step}")).await;
                paid = paid.checked_add(amount).unwrap();
            }
            6 | 7 => {
                let before = left(plane, &tenant).await;
                close(plane, &tenant, back.max(1)).await;
                assert!(left(plane, &tenant).await >= before, "seed {seed}, step {step}: it takes what may be lent");
            }
            _ => {
                let open = plane.get(&format!("/invoices?organization={}&status=open", tenant.organization)).await;
                let open = open["data"].as_array().unwrap().clone();
                if !open.is_empty() {
                    let at = usize::try_from(dice.below(open.len() as u64)).unwrap();
                    let end = if what == 8 { "void" } else { "pay?from_prepaid=true" };
                    let path = format!("/admin/v1/invoices/{}/{end}", open[at]["id"].as_str().unwrap());
                    let before = left(plane, &tenant).await;
                    let done = plane.raw(Method::POST, &path, Some(OWNER), None).await.status.is_success();
                    let enough = open[at]["remaining_due"].as_str().unwrap().parse::<Usd>().unwrap() <= before;
                    assert_eq!(done, what == 8 || enough, "seed {seed}, step {step}: {end}");
                }
            }
        }
        let (charged, credit, waived) = standing(plane, &tenant).await;
        assert!(charged <= used, "seed {seed}, step {step}: {charged} are charged of {used}");
        // What is left is what came in and what was waived, less what invoices were paid with, less usage that none
        // charges.
        let left = paid.pico + waived.pico - credit.pico - (used.pico - charged.pico);
        assert_eq!(self::left(plane, &tenant).await, Usd { pico: left }, "seed {seed}, step {step}, kind {what}");
    }
    // In the end every month is closed, and the lines are the usage. What is of this month waits.
    for back in [3, 2, 1] {
        close(plane, &tenant, back).await;
    }
    let open: String = sqlx::query_scalar(
        "SELECT coalesce(sum(cost), 0)::text FROM (
             SELECT cost_usd AS cost FROM usage_records WHERE organization_id = $1::text::uuid AND date >= $2
             UNION ALL SELECT cost_usd FROM usage_adjustments
                 WHERE organization_id = $1::text::uuid AND invoice_id IS NULL) AS open",
    )
    .bind(&tenant.organization)
    .bind(first_of(0))
    .fetch_one(&plane.pool)
    .await
    .unwrap();
    let (charged, ..) = standing(plane, &tenant).await;
    assert_eq!(charged.checked_add(open.parse().unwrap()), Some(used), "seed {seed}");
}

#[tokio::test]
async fn no_pico_dollar_is_charged_twice_or_lost() {
    let plane = Plane::start().await;
    plane.model("m").await;
    for back in 1..=3 {
        let (from, to) = (first_of(back), first_of(back - 1));
        let name = from.format("y%Ym%m");
        let sql = format!(
            "CREATE TABLE usage_records_{name} PARTITION OF usage_records FOR VALUES FROM ('{from}') TO ('{to}')"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&plane.pool).await.unwrap();
    }
    let seeds = std::env::var("TURNPIKE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(6);
    for seed in 1..=seeds {
        history(&plane, seed).await;
    }
}
