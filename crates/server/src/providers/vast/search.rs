//! From a query to checked offers.
//!
//! Vast.ai does not always apply its own filters and shows at most 64 offers, so the answer
//! comes cheapest first and every filter is applied again here. A row that lacks what an
//! offer must have is left out; when no row can be read at all, that is an error and not
//! "no offers".

use super::super::{ErrorClass, OfferQuery, ProviderError};
use super::error::{during, error};
use super::http::Call;
use super::{NAME, Vast, wire};
use dumont_core::bid::{self, Allowed, Quote};
use dumont_core::budget::Endpoint;
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashSet;

/// The service never shows more, whatever the limit.
const LIMIT: usize = 64;

impl Vast {
    pub(super) async fn search_offers(&self, query: &OfferQuery) -> Result<Vec<Offer>, ProviderError> {
        let verified = query.verified.wanted(self.config.only_verified);
        let call = Call::new(Method::POST, "/api/v0/bundles/")
            .json(search_body(query, verified))
            .listing()
            .at(Endpoint::Search)
            .harmless();
        let answer = self
            .http
            .success(call)
            .await
            .map_err(during("searching offers"))?;
        let offers = read_offers(&answer).map_err(during("searching offers"))?;
        Ok(offers
            .into_iter()
            .filter_map(|row| priced(row, query))
            .filter(|row| fits(row, query, verified))
            .map(|r| r.offer)
            .collect())
    }
}

fn search_body(query: &OfferQuery, verified: Option<bool>) -> Value {
    let mut body = json!({
        "external": {"eq": false},
        "rentable": {"eq": true},
        "num_gpus": {"eq": query.gpu_count},
        "disk_space": {"gte": query.disk_gb},
        "order": [[if query.interruptible.is_some() { "min_bid" } else { "dph_total" }, "asc"]],
        "type": "on-demand",
        "limit": LIMIT,
        // What makes dph_total the price of this disk and not of a default one.
        "allocated_storage": query.disk_gb,
    });
    if let Some(verified) = verified {
        body["verified"] = json!({ "eq": verified });
    }
    if let Some(name) = &query.gpu_name {
        body["gpu_name"] = json!({"eq": spoken(name)});
    }
    if let Some(ram) = query.min_gpu_ram_mb {
        body["gpu_ram"] = json!({"gte": ram});
    }
    if let Some(id) = &query.machine_id {
        // A number to the service; an id that is none finds nothing, here and there.
        body["machine_id"] = id
            .parse::<u64>()
            .map_or_else(|_| json!({ "eq": id }), |n| json!({ "eq": n }));
    }
    // The service knows countries only; a part of a name is looked for in the answer.
    if let Some(country) = query.region.as_deref().and_then(country) {
        body["geolocation"] = json!({"in": [country]});
    }
    let bounds = [
        ("inet_down", query.min_inet_down_mbps),
        ("inet_up", query.min_inet_up_mbps),
        ("cuda_max_good", query.min_cuda),
    ];
    for (field, least) in bounds {
        if let Some(least) = least {
            body[field] = json!({ "gte": least });
        }
    }
    if let Some(datacenter) = query.datacenter {
        body["datacenter"] = json!({ "eq": datacenter });
    }
    body
}

/// `RTX_4090` as users type it is `RTX 4090` to the service.
fn spoken(gpu_name: &str) -> String {
    gpu_name.trim().replace('_', " ")
}

/// `de` is a country to the service, in capitals.
fn country(region: &str) -> Option<String> {
    let region = region.trim();
    (region.len() == 2 && region.bytes().all(|b| b.is_ascii_alphabetic()))
        .then(|| region.to_ascii_uppercase())
}

/// Whether a place like `Quebec, CA` lies in a region.
fn lies_in(place: &str, region: &str) -> bool {
    match country(region) {
        Some(country) => place
            .rsplit(|c: char| !c.is_alphanumeric())
            .next()
            .is_some_and(|last| last.eq_ignore_ascii_case(&country)),
        None => place.to_lowercase().contains(&region.trim().to_lowercase()),
    }
}

/// An offer with what only filters need.
struct Row {
    offer: Offer,
    rentable: bool,
    quote: Option<Quote>,
    /// `None` when the row does not say.
    verified: Option<bool>,
}

fn read_offers(answer: &Value) -> Result<Vec<Row>, ProviderError> {
    let rows = match answer.get("offers") {
        Some(Value::Array(rows)) => rows.as_slice(),
        // As one example of the documentation shows it.
        Some(row @ Value::Object(_)) => std::slice::from_ref(row),
        _ => {
            return Err(error(
                ErrorClass::Protocol,
                "Vast.ai answered without a list of offers",
            ));
        }
    };
    let mut seen = HashSet::new();
    let offers: Vec<Row> = rows
        .iter()
        .filter_map(read_offer)
        .filter(|r| seen.insert(r.offer.offer_id.clone()))
        .collect();
    if offers.is_empty() && !rows.is_empty() {
        let message = format!("Vast.ai answered {} offers and none can be read", rows.len());
        return Err(error(ErrorClass::Protocol, message));
    }
    Ok(offers)
}

fn read_offer(row: &Value) -> Option<Row> {
    let verified = wire::text(row, "verification").map(|word| word == "verified");
    let share = |field| wire::number(row, field).filter(|n| (0.0..=1.0).contains(n));
    let rate = |field| wire::number(row, field).filter(|n| *n >= 0.0);
    let offer = Offer {
        offer_id: wire::id(row, "id").or_else(|| wire::id(row, "ask_contract_id"))?,
        machine: MachineRef::new(NAME, &wire::id(row, "machine_id")?).ok()?,
        host_id: wire::id(row, "host_id"),
        gpu_name: wire::text(row, "gpu_name")?,
        gpu_count: u32::try_from(wire::count(row, "num_gpus")?)
            .ok()
            .filter(|n| *n > 0)?,
        gpu_ram_mb: wire::count(row, "gpu_ram")?,
        // Nothing is free: such a price is a mistake, and would win every ranking.
        price: wire::number(row, "dph_total").filter(|p| *p > 0.0)?,
        region: wire::text(row, "geolocation"),
        provider_reliability: share("reliability2")
            .or_else(|| share("reliability"))
            .unwrap_or(0.0),
        inet_down_mbps: rate("inet_down").unwrap_or(0.0),
        inet_up_mbps: rate("inet_up").unwrap_or(0.0),
        cuda_max: rate("cuda_max_good"),
        driver_version: wire::text(row, "driver_version"),
        disk_gb: rate("disk_space")?,
        verified: verified.unwrap_or(false),
        datacenter: wire::count(row, "hosting_type").is_some_and(|kind| kind >= 1),
        bid: None,
    };
    let rentable = wire::truth(row, "rentable") != Some(false)
        && wire::truth(row, "rented") != Some(true)
        && wire::truth(row, "external") != Some(true)
        // An interruptible's price is a bid, not what an on-demand rent costs.
        && wire::truth(row, "is_bid") != Some(true);
    Some(Row {
        quote: read_quote(row),
        offer,
        rentable,
        verified,
    })
}

/// What the same machine costs as an interruptible: the row of an on-demand offer says both.
fn read_quote(row: &Value) -> Option<Quote> {
    let on_demand = wire::number(row, "dph_base")?;
    Some(Quote {
        min_bid: wire::number(row, "min_bid").filter(|bid| *bid > 0.0)?,
        on_demand,
        storage: (wire::number(row, "dph_total")? - on_demand).max(0.0),
    })
}

/// The offer as the query wants it: on demand, or for a bid that the query allows.
fn priced(row: Row, query: &OfferQuery) -> Option<Row> {
    let Some(interruptible) = query.interruptible else {
        return Some(row);
    };
    let allowed = Allowed {
        fixed: interruptible.bid,
        max_price: query.max_price,
    };
    let quote = row.quote?;
    let bid = bid::choose(&quote, &allowed)?;
    let offer = Offer {
        bid: Some(bid),
        price: bid + quote.storage,
        ..row.offer
    };
    Some(Row { offer, ..row })
}

fn fits(row: &Row, query: &OfferQuery, verified: Option<bool>) -> bool {
    let offer = &row.offer;
    row.rentable
        // Where the row is silent, the service's own filter has to do.
        && verified.is_none_or(|wanted| row.verified.is_none_or(|is| is == wanted))
        && offer.gpu_count == query.gpu_count
        && query.gpu_name.as_ref().is_none_or(|n| spoken(&offer.gpu_name).eq_ignore_ascii_case(&spoken(n)))
        && query.min_gpu_ram_mb.is_none_or(|mb| offer.gpu_ram_mb >= mb)
        && query.max_price.is_none_or(|max| offer.price <= max)
        && offer.disk_gb >= f64::from(query.disk_gb)
        && query.machine_id.as_ref().is_none_or(|id| offer.machine.machine_id == *id)
        && query.region.as_ref().is_none_or(|r| offer.region.as_ref().is_some_and(|place| lies_in(place, r)))
        && query.min_inet_down_mbps.is_none_or(|least| offer.inet_down_mbps >= least)
        && query.min_inet_up_mbps.is_none_or(|least| offer.inet_up_mbps >= least)
        && query.min_cuda.is_none_or(|least| offer.cuda_max.is_some_and(|max| max >= least))
        && query.datacenter.is_none_or(|wanted| offer.datacenter == wanted)
}

#[cfg(test)]
mod tests {
    use super::super::super::Verified;
    use super::*;
    use dumont_core::spec::Interruptible;
    use proptest::prelude::*;

    fn row() -> Value {
        json!({"id": 5, "machine_id": 88888, "host_id": 9, "num_gpus": "1", "gpu_name": "RTX 4090", "gpu_ram": "24564",
            "dph_total": 0.5, "disk_space": 512.0, "verification": "verified", "reliability2": 0.99,
            "geolocation": "Quebec, CA", "inet_down": 500, "inet_up": 400, "cuda_max_good": 12.4, "hosting_type": 1})
    }

    fn found(rows: Value, query: &OfferQuery) -> usize {
        read_offers(&json!({ "offers": rows }))
            .unwrap()
            .iter()
            .filter(|r| fits(r, query, Some(true)))
            .count()
    }

    #[test]
    fn every_filter_is_applied_again() {
        let query = OfferQuery {
            gpu_name: Some("rtx_4090".into()),
            gpu_count: 1,
            min_gpu_ram_mb: Some(24_000),
            max_price: Some(0.5),
            disk_gb: 40,
            machine_id: Some("88888".into()),
            region: Some("ca".into()),
            min_inet_down_mbps: Some(500.0),
            min_inet_up_mbps: Some(400.0),
            min_cuda: Some(12.4),
            verified: Verified::AsConfigured,
            datacenter: Some(true),
            interruptible: None,
        };
        assert_eq!(found(json!([row()]), &query), 1);
        let spoiled = [
            ("num_gpus", json!(2)),
            ("gpu_name", json!("RTX 3090")),
            ("gpu_ram", json!(12_000)),
            ("dph_total", json!(0.51)),
            ("disk_space", json!(39.9)),
            ("verification", json!("deverified")),
            ("machine_id", json!(88889)),
            ("geolocation", json!("Ontario, US")),
            ("geolocation", Value::Null),
            ("inet_down", json!(499)),
            ("inet_up", json!(399)),
            ("cuda_max_good", json!(12.2)),
            ("cuda_max_good", Value::Null),
            ("hosting_type", json!(0)),
            ("rentable", json!(false)),
            ("rented", json!(true)),
            ("external", json!(true)),
            ("is_bid", json!(true)),
        ];
        for (field, value) in spoiled {
            let mut bad = row();
            bad[field] = value;
            assert_eq!(found(json!([bad]), &query), 0, "{field}");
        }
    }

    #[test]
    fn rows_without_what_an_offer_needs_are_left_out() {
        let query = OfferQuery {
            gpu_count: 1,
            ..Default::default()
        };
        for field in [
            "id",
            "machine_id",
            "num_gpus",
            "gpu_name",
            "gpu_ram",
            "dph_total",
            "disk_space",
        ] {
            for bad in [Value::Null, json!("NaN"), json!({}), json!(-1)] {
                let mut spoiled = row();
                spoiled["id"] = json!(6);
                spoiled[field] = bad.clone();
                let expected = if field == "gpu_name" && (bad == json!("NaN") || bad == json!(-1)) {
                    2
                } else {
                    1
                };
                assert_eq!(found(json!([row(), spoiled]), &query), expected, "{field} {bad}");
            }
        }
        assert_eq!(
            found(json!([row(), row()]), &query),
            1,
            "an offer shown twice is one offer"
        );
        assert!(
            read_offers(&json!({"offers": [{"id": 1}, 7]})).is_err(),
            "unreadable is not the same as none"
        );
        assert!(read_offers(&json!({"offers": null})).is_err());
        assert!(read_offers(&json!([])).is_err());
    }

    #[test]
    fn an_interruptible_is_priced_by_its_bid() {
        let mut row = row();
        row["min_bid"] = json!(0.1);
        row["dph_base"] = json!(0.48);
        let found = |row: &Value, interruptible: Interruptible, max_price: Option<f64>| {
            let query = OfferQuery {
                interruptible: Some(interruptible),
                max_price,
                ..OfferQuery::default()
            };
            let row = read_offer(row).and_then(|row| priced(row, &query));
            row.map(|r| {
                (
                    (r.offer.bid.unwrap() * 1e4).round(),
                    (r.offer.price * 1e4).round(),
                )
            })
        };
        let auto = Interruptible { bid: None };
        assert_eq!(found(&row, auto, None), Some((1250.0, 1450.0)));
        assert_eq!(found(&row, auto, Some(0.11)), None, "not even the lowest bid");
        assert_eq!(
            found(&row, Interruptible { bid: Some(0.3) }, None),
            Some((3000.0, 3200.0))
        );
        row["min_bid"] = Value::Null;
        assert_eq!(found(&row, auto, None), None, "nobody says what to bid");
    }

    #[test]
    fn a_region_is_a_country_or_a_part_of_the_name() {
        for region in ["CA", "ca", "Quebec", "quebec, ca", "beC"] {
            assert!(lies_in("Quebec, CA", region), "{region}");
        }
        for region in ["US", "QU", "Ontario"] {
            assert!(!lies_in("Quebec, CA", region), "{region}");
        }
    }

    #[test]
    fn verification_is_the_accounts_unless_said() {
        assert_eq!(Verified::AsConfigured.wanted(true), Some(true));
        assert_eq!(Verified::AsConfigured.wanted(false), None);
        assert_eq!(Verified::Any.wanted(true), None);
        assert_eq!(Verified::Only(false).wanted(true), Some(false));
    }

    proptest! {
        #[test]
        fn odd_values_never_panic(field in "[a-z_]{1,12}", text in ".{0,40}", n in any::<f64>(), i in any::<i64>()) {
            for value in [json!(text), json!(n), json!(i), json!([n]), json!({"x": i})] {
                for known in ["id", "machine_id", "num_gpus", "gpu_ram", "dph_total", "geolocation", field.as_str()] {
                    let mut odd = row();
                    odd[known] = value.clone();
                    if let Some(read) = read_offer(&odd) {
                        prop_assert!(read.offer.price.is_finite() && read.offer.price > 0.0);
                    }
                }
            }
        }
    }
}
