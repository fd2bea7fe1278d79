//! Rows that are looked at before they are written out: pure.
//!
//! A search goes over every offer and shows at most 64. Written out, an offer has a hundred
//! fields; what a search filters and orders by are a few. So those are answered one by one,
//! and a whole row is made only of what is shown, or asked for a field that is rare.

use serde_json::{Value, json};

use crate::offers::{Ask, Machine, Offer, Price, dlperf, driver_number, offer_row, round, score};
use crate::query::Row;
use crate::rows::instance_row;
use crate::state::{Instance, State};

/// An offer at a price.
pub struct OfferView<'a> {
    pub machine: &'a Machine,
    pub offer: &'a Offer,
    pub ask: Ask,
}

impl OfferView<'_> {
    pub fn row(&self) -> Value {
        offer_row(self.machine, self.offer, &self.ask)
    }

    fn price(&self) -> Price {
        let bid = self.ask.bid.then(|| self.min_bid());
        Price::of(self.ask.quote, self.offer.gpus.len(), self.ask.disk_gb, bid)
    }

    fn min_bid(&self) -> f64 {
        self.ask.quote.min_bid * self.offer.gpus.len() as f64
    }
}

impl Row for OfferView<'_> {
    fn field(&self, name: &str) -> Value {
        let (m, gpus) = (self.machine, self.offer.gpus.len());
        let share = gpus as f64 / f64::from(m.gpu_count);
        match name {
            "id" | "ask_contract_id" => json!(self.offer.id),
            "machine_id" => json!(m.machine_id),
            "host_id" => json!(m.host_id),
            "num_gpus" => json!(gpus),
            "gpu_name" => json!(m.gpu_name),
            "gpu_ram" => json!(m.gpu_ram_mb),
            "gpu_total_ram" | "gpu_totalram" => json!(m.gpu_ram_mb * gpus as u64),
            "compute_cap" => json!(m.compute_cap),
            "cuda_max_good" => json!(m.cuda_max_good),
            "driver_version" => json!(m.driver_version),
            "driver_vers" => json!(driver_number(m.driver_version)),
            "reliability" | "reliability2" | "expected_reliability" => json!(m.reliability),
            "verification" => json!(if m.verified { "verified" } else { "unverified" }),
            "hosting_type" => json!(u8::from(m.datacenter)),
            "geolocation" => json!(m.geolocation),
            "static_ip" => json!(m.datacenter),
            "inet_down" => json!(m.inet_down),
            "inet_up" => json!(m.inet_up),
            "disk_space" => json!(round(m.disk_gb * share, 1)),
            "disk_bw" => json!(m.disk_bw),
            "cpu_ram" => json!(m.cpu_ram_mb),
            "cpu_cores" => json!(m.cpu_cores),
            "cpu_cores_effective" => json!(round(f64::from(m.cpu_cores) * share, 1)),
            "duration" => json!(m.max_duration_s),
            "storage_cost" => json!(m.storage_cost),
            "rentable" => json!(true),
            "rented" => json!(false),
            "external" => Value::Null,
            "is_bid" => json!(self.ask.bid),
            "min_bid" => json!(self.min_bid()),
            "dph_base" => json!(self.price().dph_base),
            "dph_total" | "dph_total_adj" => json!(self.price().dph_total()),
            "dlperf" => json!(dlperf(m, gpus)),
            "score" => json!(score(m, gpus, self.price().dph_total())),
            _ => self.row().field(name),
        }
    }
}

/// An instance in a list.
pub struct InstanceView<'a> {
    pub state: &'a State,
    pub instance: &'a Instance,
    pub now_ms: i64,
}

impl InstanceView<'_> {
    pub fn row(&self) -> Value {
        instance_row(self.state, self.instance, self.now_ms)
    }
}

impl Row for InstanceView<'_> {
    fn field(&self, name: &str) -> Value {
        let machine = self.state.universe.machines.get(self.instance.machine);
        match name {
            "id" => json!(self.instance.id),
            "label" => json!(self.instance.order.label),
            "actual_status" => json!(self.instance.status.as_str()),
            "gpu_name" => json!(machine.map(|m| m.gpu_name)),
            "machine_id" => json!(machine.map(|m| m.machine_id)),
            "host_id" => json!(machine.map(|m| m.host_id)),
            "verification" => {
                json!(machine.map(|m| if m.verified { "verified" } else { "unverified" }))
            }
            _ => self.row().field(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offers::Universe;

    /// What is answered at once is what the whole row says.
    #[test]
    fn a_view_says_what_its_row_says() {
        let universe = Universe::from_seed(4, 60);
        for (offer, bid) in universe.offers.values().zip([true, false].into_iter().cycle()) {
            let machine = &universe.machines[offer.machine];
            let ask = Ask {
                quote: machine.quote(),
                disk_gb: 17.0,
                bid,
                now_s: 1e9,
            };
            let view = OfferView { machine, offer, ask };
            let row = view.row();
            for (name, value) in row.as_object().expect("a row") {
                assert_eq!(&view.field(name), value, "{name}");
            }
            assert_eq!(view.field("no_such_field"), Value::Null);
        }
    }
}
