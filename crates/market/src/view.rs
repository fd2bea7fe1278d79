//! An offer as a search looks at it and shows it.

use serde_json::json;

use crate::cell::{columns, hardware_row};
use crate::hardware::Hardware;
use crate::offers::{Ask, HOURS_PER_MONTH, Machine, Offer, Price, dlperf, round, score};

/// An offer at a price.
pub struct OfferView<'a> {
    pub machine: &'a Machine,
    pub offer: &'a Offer,
    pub ask: Ask,
}

impl<'a> OfferView<'a> {
    pub fn hardware(&self) -> Hardware<'a> {
        Hardware {
            machine: self.machine,
            gpus: &self.offer.gpus,
        }
    }

    /// Interruptible ones show the lowest bid.
    fn price(&self) -> Price {
        let bid = self.ask.bid.then(|| self.min_bid());
        Price::of(self.ask.quote, self.offer.gpus.len(), self.ask.disk_gb, bid)
    }

    fn min_bid(&self) -> f64 {
        self.ask.quote.min_bid * self.offer.gpus.len() as f64
    }

    fn total(&self) -> f64 {
        self.price().dph_total()
    }

    fn dlperf(&self) -> f64 {
        dlperf(self.machine, self.offer.gpus.len())
    }
}

columns! { OfferColumn<'a> of v: OfferView<'a>; m = v.machine, n = v.offer.gpus.len() => {
    id: v.offer.id,
    ask_contract_id: v.offer.id,
    bundle_id: 900_000_000 + v.offer.id,
    bundled_results: (),
    hostname: (),
    public_ipaddr: m.public_ip.as_str(),
    disk_space: round(m.disk_gb * v.hardware().share(), 1),
    dph_base: v.price().dph_base,
    dph_total: v.total(),
    dph_total_adj: v.total(),
    storage_cost: m.storage_cost,
    storage_total_cost: v.price().storage_total_cost,
    min_bid: v.min_bid(),
    is_bid: v.ask.bid,
    vram_costperhour: v.total() / (m.gpu_ram_mb as f64 * n as f64),
    discount_rate: 0.0,
    discounted_hourly: 0.0,
    discounted_dph_total: v.total(),
    credit_discount_max: 0.4,
    search: v.price().as_search_value(),
    instance: {
        let disk = v.price().storage_total_cost;
        json!({"gpuCostPerHour": 0, "diskHour": disk, "totalHour": disk,
            "discountTotalHour": 0, "discountedTotalPerHour": disk})
    },
    dlperf: v.dlperf(),
    dlperf_per_dphtotal: round(v.dlperf() / v.total(), 3),
    flops_per_dphtotal: round(m.tflops_per_gpu * n as f64 / v.total(), 3),
    score: score(m, n, v.total()),
    rentable: true,
    rented: false,
    external: (),
    start_date: v.ask.now_s - 30.0 * 86_400.0,
    end_date: v.ask.now_s + m.max_duration_s,
    duration: m.max_duration_s,
    time_remaining: "",
    time_remaining_isbid: "",
    vms_enabled: false,
    is_vm_deverified: false,
    avail_vol_ask_id: crate::volumes::ask_id(m),
    avail_vol_dph: m.storage_cost / HOURS_PER_MONTH,
    avail_vol_size: (m.disk_gb / 2.0).floor(),
    nw_disk_min_bw: (),
    nw_disk_max_bw: (),
    nw_disk_avg_bw: (),
    rn: 1,
}}

hardware_row!(OfferView, OfferColumn);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Row;
    use crate::offers::Universe;

    /// What is answered alone is what the whole row says, and no column is written twice.
    #[test]
    fn a_column_says_what_the_row_says() {
        let universe = Universe::from_seed(4, 60);
        for (offer, bid) in universe.offers.iter().zip([true, false].into_iter().cycle()) {
            let machine = &universe.machines[offer.machine];
            let ask = Ask {
                quote: machine.quote(),
                disk_gb: 17.0,
                bid,
                now_s: 1e9,
            };
            let view = OfferView { machine, offer, ask };
            let row = serde_json::to_value(&view).expect("a row");
            let row = row.as_object().expect("an object");
            assert_eq!(
                row.len(),
                OfferColumn::ALL.len() + crate::hardware::HardwareColumn::ALL.len()
            );
            for (name, value) in row {
                let column = OfferView::column(name).expect("a column");
                assert_eq!(
                    &serde_json::to_value(view.cell(&column)).expect("JSON"),
                    value,
                    "{name}"
                );
            }
            assert!(OfferView::column("no_such_field").is_none());
            assert_eq!(row["verification"] == "verified", machine.verified);
        }
    }
}
