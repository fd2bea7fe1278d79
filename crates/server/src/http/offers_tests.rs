use super::*;
use dumont_core::blacklist::BlacklistType;
use dumont_core::boot::{Observation, Wait};
use dumont_core::history::Stats;
use dumont_store::Block;
use proptest::prelude::*;

fn offer(id: u32, machine: u32, price: f64) -> Offer {
    Offer {
        offer_id: id.to_string(),
        machine: MachineRef::new("vast", &machine.to_string()).unwrap(),
        host_id: None,
        gpu_name: "RTX 4090".into(),
        gpu_count: 1,
        gpu_ram_mb: 24_564,
        price,
        region: Some("Quebec, CA".into()),
        provider_reliability: 0.99,
        inet_down_mbps: 800.0,
        inet_up_mbps: 800.0,
        cuda_max: Some(12.4),
        driver_version: None,
        disk_gb: 100.0,
        verified: true,
        datacenter: false,
        bid: None,
    }
}

fn record(machine: u32, successful: i64, failed: i64, blocked: bool) -> (String, MachineRow) {
    let stats = Stats {
        total: successful + failed,
        successful,
        failed,
        ..Stats::default()
    };
    let row = MachineRow {
        machine: MachineRef::new("vast", &machine.to_string()).unwrap(),
        reliability_score: 0.5,
        stats,
        block: blocked.then(|| Block {
            blacklist_type: BlacklistType::Manual,
            reason: "no good".into(),
            blacklisted_at: Timestamp(0),
            expires_at: None,
            scope: None,
        }),
        sums: Default::default(),
        host_id: None,
        bucket: None,
    };
    (machine.to_string(), row)
}

fn knowing(rows: &[(String, MachineRow)]) -> Known<'_> {
    let score = |r: &MachineRow| (r.stats.successful as f64 + 2.55) / (r.stats.counted() as f64 + 3.0);
    Known {
        scores: rows.iter().map(|(id, row)| (id.as_str(), score(row))).collect(),
        machines: rows.iter().map(|(id, row)| (id.as_str(), row)).collect(),
        ..Known::default()
    }
}

fn page(offers: &[Offer], known: &Known<'_>, query: &wire::OfferQuery) -> OfferPage {
    arranged(offers.iter().map(|o| annotated(o, known)).collect(), query)
}

fn ids(page: &OfferPage) -> Vec<String> {
    page.items.iter().map(|o| o.id.to_string()).collect()
}

#[test]
fn the_example_of_the_document() {
    let records = [record(12345, 17, 3, false)];
    let known = knowing(&records);
    let shown = annotated(&offer(29_102_584, 12345, 0.25), &known);
    let json = serde_json::to_value(&shown).unwrap();
    let document = serde_json::json!({
        "id": 29_102_584, "gpu_name": "RTX 4090", "dph_total": 0.25, "machine_id": "12345",
        "is_blacklisted": false, "blacklist_reason": null, "success_rate": 0.85, "total_attempts": 20,
        "reliability_status": "good",
    });
    for (field, value) in document.as_object().unwrap() {
        assert_eq!(&json[field], value, "{field}");
    }
    let stranger = annotated(&offer(1, 2, 0.25), &known);
    assert_eq!(
        (stranger.success_rate, stranger.reliability_status.as_str()),
        (None, "unknown")
    );
}

#[test]
fn blacklisted_are_hidden_unless_asked_for_and_never_first() {
    let offers = [offer(1, 1, 0.1), offer(2, 1, 0.2), offer(3, 2, 0.3)];
    let records = [record(1, 50, 0, true)];
    let known = knowing(&records);
    let hidden = page(&offers, &known, &wire::OfferQuery::default());
    assert_eq!(
        (ids(&hidden), hidden.found, hidden.blacklisted_hidden),
        (vec!["3".into()], 3, 1)
    );
    let all = wire::OfferQuery {
        include_blacklisted: Some(true),
        ..Default::default()
    };
    let all = page(&offers, &known, &all);
    assert_eq!(
        (ids(&all), all.blacklisted_hidden),
        (vec!["3".into(), "1".into()], 0)
    );
    assert_eq!(all.items[1].blacklist_reason.as_deref(), Some("no good"));
    assert_eq!(all.items[1].reliability_status, "blacklisted");
}

#[test]
fn a_block_for_the_asked_cuda_version_hides_too() {
    let records = [record(1, 9, 1, false)];
    let mut known = knowing(&records);
    known.scoped.insert("1", "driver_mismatch");
    let hidden = page(&[offer(1, 1, 0.1)], &known, &wire::OfferQuery::default());
    assert_eq!((hidden.items.len(), hidden.blacklisted_hidden), (0, 1));
    let shown = annotated(&offer(1, 1, 0.1), &known);
    assert_eq!(shown.reliability_status, "blacklisted");
    assert_eq!(shown.blacklist_reason.as_deref(), Some("driver_mismatch"));
}

#[test]
fn orders_and_several_offers_of_one_machine() {
    let mut offers = [
        offer(1, 1, 0.4),
        offer(2, 1, 0.3),
        offer(3, 2, 0.1),
        offer(4, 3, 0.2),
    ];
    offers[0].inet_down_mbps = 100.0;
    offers[1].inet_down_mbps = 100.0;
    let records = [record(1, 19, 1, false), record(3, 0, 2, false)];
    let mut known = knowing(&records);
    known.ready = [300.0, 90.0, 60.0];
    let by = |order, all_offers| wire::OfferQuery {
        order: Some(order),
        all_offers,
        ..Default::default()
    };
    assert_eq!(
        ids(&page(&offers, &known, &by(OfferOrder::Score, None))),
        ["2", "3", "4"]
    );
    assert_eq!(
        ids(&page(&offers, &known, &by(OfferOrder::Score, Some(true)))),
        ["2", "1", "3", "4"]
    );
    assert_eq!(
        ids(&page(&offers, &known, &by(OfferOrder::Price, None))),
        ["3", "4", "2"]
    );
    assert_eq!(
        ids(&page(&offers, &known, &by(OfferOrder::Ready, None))),
        ["3", "4", "2"]
    );
}

#[test]
fn seconds_to_ready_are_the_mean_of_the_curve_that_the_race_uses() {
    let seen = |mbps: f64, warm, seconds| Observation {
        stratum: Stratum::of(mbps, warm),
        seconds,
        wait: Wait::Ready,
    };
    // Slow ones boot in 200 s, fast ones in 40; with the image already there, in 10.
    let all: Vec<_> = (0..300)
        .flat_map(|_| {
            [
                seen(100.0, false, 200.0),
                seen(900.0, false, 40.0),
                seen(100.0, true, 10.0),
            ]
        })
        .collect();
    let curves = BootCurves::fit(&all);
    let offers = [offer(1, 1, 0.1), {
        let mut slow = offer(2, 2, 0.1);
        slow.inet_down_mbps = 100.0;
        slow
    }];
    let nothing = Standings::default();
    let known = Known::of(&offers, &nothing, None, &curves, Timestamp(0));
    for (offer, about) in offers.iter().zip([40.0, 200.0]) {
        let stratum = Stratum::of(offer.inet_down_mbps, false);
        let shown = annotated(offer, &known).predicted_ready_seconds;
        assert_eq!(shown, curves.curve(stratum).mean());
        assert!((shown - about).abs() < 20.0, "{shown} is not about {about}");
    }
}

#[test]
fn pages_follow_the_offer_that_was_shown_last() {
    let offers: Vec<_> = (1..=5).map(|n| offer(n, n, f64::from(n))).collect();
    let whole = || page(&offers, &Known::default(), &wire::OfferQuery::default());
    let first = cut(whole(), 2, None).unwrap();
    assert_eq!(
        (ids(&first), first.next.as_deref()),
        (vec!["1".into(), "2".into()], Some("2"))
    );
    let last = cut(whole(), 3, Some("2")).unwrap();
    assert_eq!(
        (ids(&last), last.next),
        (vec!["3".into(), "4".into(), "5".into()], None)
    );
    assert_eq!(
        cut(whole(), 3, Some("77")).unwrap_err().body.code,
        "offers_changed"
    );
}

#[test]
fn what_finds_nothing_or_means_nothing_is_refused() {
    let bad = |change: &dyn Fn(&mut wire::OfferQuery)| {
        let mut query = wire::OfferQuery::default();
        change(&mut query);
        let error = checked(&query).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(
            !error.body.message.is_empty() && !error.body.hint.is_empty(),
            "{error:?}"
        );
    };
    bad(&|q| q.gpu = Some("  ".into()));
    bad(&|q| q.gpu = Some("x\u{1b}[31m".into()));
    bad(&|q| q.gpu_count = Some(0));
    bad(&|q| q.gpu_count = Some(17));
    bad(&|q| q.min_ram_gb = Some(-1.0));
    bad(&|q| q.max_price = Some(f64::NAN));
    bad(&|q| q.max_price = Some(0.0));
    bad(&|q| q.disk_gb = Some(0));
    bad(&|q| q.min_down_mbps = Some(f64::INFINITY));
    bad(&|q| q.region = Some("x".repeat(101)));
    bad(&|q| q.machine = Some("12345".into()));
    bad(&|q| q.machine = Some("tensordock:12345".into()));
    assert!(checked(&wire::OfferQuery::default()).is_ok());
}

proptest! {
    #[test]
    fn the_order_is_total_and_a_machine_shows_once(
        rows in proptest::collection::vec((0..9_u32, 1..6_u32), 0..40),
        ready in any::<bool>(),
    ) {
        let offers: Vec<_> = rows.iter().enumerate()
            .map(|(id, (machine, price))| offer(id as u32, *machine, f64::from(*price))).collect();
        let records = [record(1, 3, 0, false), record(2, 0, 3, false), record(3, 1, 0, true)];
    let known = knowing(&records);
        let query = wire::OfferQuery { order: ready.then_some(OfferOrder::Ready), ..Default::default() };
        let plain = page(&offers, &known, &query);
        let mut turned = offers.clone();
        turned.reverse();
        prop_assert_eq!(&plain, &page(&turned, &known, &query));
        let machines: BTreeSet<_> = rows.iter().map(|r| r.0).filter(|m| *m != 3).collect();
        prop_assert_eq!(machines.len(), plain.items.len());
    }
}
