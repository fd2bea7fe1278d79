use std::collections::HashSet;

use super::*;
use crate::view::OfferView;

#[test]
fn same_seed_same_market() {
    assert_eq!(Universe::from_seed(42, 50), Universe::from_seed(42, 50));
    assert_ne!(Universe::from_seed(42, 50), Universe::from_seed(43, 50));
}

#[test]
fn a_box_lists_one_to_three_rows_and_ids_are_unique() {
    let universe = Universe::from_seed(1, 200);
    let rows = universe.listed(|_, _| true);
    for index in 0..universe.machines.len() {
        let n = rows.iter().filter(|(_, o)| o.machine == index).count();
        assert!((1..=3).contains(&n), "machine {index} lists {n}");
    }
    let machines: HashSet<u64> = universe.machines.iter().map(|m| m.machine_id).collect();
    assert_eq!(machines.len(), 200);
    let hosts: HashSet<u64> = universe.machines.iter().map(|m| m.host_id).collect();
    assert!(hosts.len() < 100, "{} hosts own 200 machines", hosts.len());
    let models: HashSet<&str> = universe.machines.iter().map(|m| m.gpu_name).collect();
    assert_eq!(models.len(), MODELS.len());
}

#[test]
fn renting_hides_what_overlaps_and_shows_the_next_chunk() {
    let universe = Universe::from_seed(1, 200);
    let index = universe
        .machines
        .iter()
        .position(|m| m.gpu_count == 4)
        .expect("a 4-GPU box");
    let sizes = |taken: &[u32]| -> Vec<Vec<u32>> {
        let rows = universe.listed(|m, gpu| m != index || !taken.contains(&gpu));
        rows.iter()
            .filter(|(_, o)| o.machine == index)
            .map(|(_, o)| o.gpus.clone())
            .collect()
    };
    assert_eq!(sizes(&[]), [vec![0], vec![0, 1], vec![0, 1, 2, 3]]);
    assert_eq!(sizes(&[0]), [vec![1], vec![2, 3]]);
    assert_eq!(sizes(&[0, 1, 2, 3]), [] as [Vec<u32>; 0]);
}

#[test]
fn rows_price_storage_by_the_month_of_720_hours() {
    let universe = Universe::from_seed(1, 20);
    for (_, offer) in universe.listed(|_, _| true) {
        let machine = &universe.machines[offer.machine];
        let ask = |bid| Ask {
            quote: machine.quote(),
            disk_gb: 40.0,
            bid,
            now_s: 0.0,
        };
        let row = json!(OfferView {
            machine,
            offer,
            ask: ask(false)
        });
        let num = |k: &str| row[k].as_f64().expect("number");
        assert!((num("storage_total_cost") - 40.0 * num("storage_cost") / 720.0).abs() < 1e-12);
        assert!((num("dph_total") - num("dph_base") - num("storage_total_cost")).abs() < 1e-12);
        let bid = json!(OfferView {
            machine,
            offer,
            ask: ask(true)
        });
        assert_eq!(bid["dph_base"], bid["min_bid"]);
    }
}

#[test]
fn boots_take_a_plausible_time_and_are_repeatable() {
    let universe = Universe::from_seed(5, 300);
    let total = |m: usize| {
        let plan = universe.boot_plan(m, 0);
        plan.created_s + plan.loading_s + plan.sshd_s
    };
    let mut all: Vec<f64> = (0..300).map(total).collect();
    assert_eq!(all, (0..300).map(total).collect::<Vec<_>>());
    all.sort_by(f64::total_cmp);
    assert!((20.0..=60.0).contains(&all[150]), "median {}", all[150]);
    assert!(all[270] < 120.0, "p90 {}", all[270]);
}

#[test]
fn driver_versions_count_as_vast_counts_them() {
    assert_eq!(driver_number("535.86.05"), 535_086_005);
    assert_eq!(driver_number("565.77"), 565_077_000);
}
