//! Prices have versions and begin at a time; edges know of them before.

use crate::peers::Edge;
use crate::plane::{Plane, eventually, fields};
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use turnpike_config::{Routing, Tokens, Usd};

fn pricing(input: &str) -> Value {
    json!({"input_tokens": input, "output_tokens": "0.03"})
}

fn versions(routing: &Routing) -> Vec<u32> {
    routing.models.get("m").map(|model| model.prices.iter().map(|p| p.version).collect()).unwrap_or_default()
}

fn cost(routing: &Routing, at: DateTime<Utc>) -> (u32, Usd) {
    let ms = u64::try_from(at.timestamp_millis()).unwrap();
    let (version, price) = routing.models["m"].price_at(ms);
    (version, price.cost(Tokens { prompt: 1000, cached: 0, completion: 0 }))
}

#[tokio::test]
async fn a_price_begins_when_it_was_said_and_every_edge_knows_before() {
    let mut plane = Plane::start().await;
    plane.model("m").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.until("the first price", |routing| versions(routing) == [1]).await;
    let began = Utc::now();
    assert_eq!(cost(&edge.routing, began), (1, "0.01".parse().unwrap()));

    plane.call(Method::PATCH, "/models/m", Some(json!({"pricing": pricing("0.02")}))).await;
    edge.until("the second price", |routing| versions(routing) == [1, 2]).await;
    assert_eq!(cost(&edge.routing, began).0, 1, "what began before is asked the price of then");
    plane.call(Method::PATCH, "/models/m", Some(json!({"pricing": pricing("0.02"), "name": "M"}))).await;

    let soon = Utc::now() + TimeDelta::seconds(3);
    let third = plane.post("/models/m/prices", json!({"pricing": pricing("0.04"), "effective_from": soon})).await;
    assert_eq!(third["version"], 3, "the same price again was no version");
    edge.until("the third price", |routing| versions(routing) == [1, 2, 3]).await;
    assert_eq!(cost(&edge.routing, Utc::now()), (2, "0.02".parse().unwrap()));
    assert_eq!(cost(&edge.routing, soon), (3, "0.04".parse().unwrap()));
    assert_eq!(plane.get("/models/m").await["pricing"], pricing("0.02"), "not before it begins");
    eventually("the model shows it", || async {
        (plane.get("/models/m").await["pricing"] == pricing("0.04")).then_some(())
    })
    .await;
    assert!(Utc::now() >= soon);

    // What ended more than an hour ago is of no use to edges; the books keep it.
    sqlx::raw_sql(
        "ALTER TABLE model_prices DISABLE TRIGGER USER;
         UPDATE model_prices SET effective_from = effective_from - interval '2 hours' WHERE version < 3;
         ALTER TABLE model_prices ENABLE TRIGGER USER;",
    )
    .execute(&plane.pool)
    .await
    .unwrap();
    plane.restart().await;
    let mut fresh = Edge::connect(&plane, "e2", Routing::default()).await;
    fresh.next().await;
    assert_eq!(versions(&fresh.routing), [2, 3]);
    let page = plane.get("/models/m/prices?limit=2").await;
    let listed: Vec<_> = page["data"].as_array().unwrap().iter().map(|p| p["version"].as_i64().unwrap()).collect();
    assert_eq!((listed, page["next_cursor"].is_string()), (vec![3, 2], true));
}

#[tokio::test]
async fn prices_of_the_past_and_what_is_no_price_are_refused() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let now = Utc::now();
    let cases = [
        (json!({"pricing": pricing("1"), "effective_from": now - TimeDelta::minutes(1)}), "effective_from"),
        (json!({"pricing": pricing("1"), "effective_from": now + TimeDelta::days(4000)}), "effective_from"),
        (json!({"pricing": {"input_tokens": 1}}), "pricing"),
        (json!({"pricing": {"input_tokens": 1, "output_tokens": 1, "cached_input_tokens": -1}}), "pricing"),
        (json!({"pricing": pricing("1"), "version": 9}), "version"),
    ];
    for (body, field) in cases {
        let problem = plane.refused(Method::POST, "/models/m/prices", &body.to_string(), 422).await;
        assert_eq!(fields(&problem), [field], "{problem}");
    }
    let body = json!({"pricing": pricing("1")}).to_string();
    plane.refused(Method::POST, "/models/none/prices", &body, 404).await;
    plane.refused(Method::GET, "/models/none/prices", "", 404).await;
    for sql in ["UPDATE model_prices SET input_token = 0", "DELETE FROM model_prices"] {
        assert!(sqlx::query(sql).execute(&plane.pool).await.is_err(), "{sql}");
    }
    let full = json!({"input_tokens": 1, "output_tokens": 3, "cached_input_tokens": "0.25", "per_request": 0.5});
    plane.post("/models/m/prices", json!({"pricing": full})).await;
    let row: (String, String) = sqlx::query_as(
        "SELECT trim_scale(cached_input_token)::text, trim_scale(request)::text FROM model_prices WHERE version = 2",
    )
    .fetch_one(&plane.pool)
    .await
    .unwrap();
    assert_eq!(row, ("0.00025".to_owned(), "0.5".to_owned()));
    assert_eq!(plane.get("/models/m").await["pricing"], full);
}
