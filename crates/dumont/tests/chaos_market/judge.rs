//! What the market's books say when all is over, held against what dumont has written down.

use crate::Chaos;
use dumont_store::{InstanceState, Store};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

/// Ids of what lives at the market.
pub fn alive(ledger: &Value) -> HashSet<String> {
    let all = ledger["instances"].as_array().expect("instances");
    let alive = all.iter().filter(|i| i["state"] != "destroyed");
    alive.map(|i| i["id"].to_string()).collect()
}

impl Chaos {
    /// The ledger of a moment at which all that lives is what workspaces live on, and nothing is
    /// under way or owed. Machines of this market die all the time, so it is one moment that counts, and few
    /// may live for it to come.
    pub fn balanced(&mut self) -> Value {
        let mut ledger = Value::Null;
        self.wait_until("balance", |chaos| {
            let owned = chaos.owned();
            ledger = chaos.admin("GET", "/admin/ledger");
            alive(&ledger) == owned
                && chaos.at_rest()
                && chaos.owned() == owned
                && chaos.open() == owned.len()
        });
        ledger
    }

    fn store(&self) -> Store {
        let file = self.world.dir.path().join("dumont.db");
        self.runtime.block_on(Store::open(file)).unwrap()
    }

    /// Rows that may cost money: what is owned, and debts, also of rents that never were.
    fn open(&self) -> usize {
        let store = self.store();
        self.runtime.block_on(store.list_open_instances()).unwrap().len()
    }

    /// Every contract that the market ever made stands under a label of its own and in a row of
    /// dumont's, which says of it what the market says.
    pub fn judge_books(&self, ledger: &Value) {
        let labels = ledger["labels"].as_object().expect("labels");
        let twice: Vec<_> = labels.iter().filter(|(_, l)| l["created"] != 1).collect();
        assert!(twice.is_empty(), "rented twice: {twice:#?}");
        let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
        let store = self.store();
        for instance in ledger["instances"].as_array().expect("instances") {
            let label = instance["label"].as_str().expect("a label");
            let row = self.runtime.block_on(store.instance_by_label(label)).unwrap();
            let row = row.unwrap_or_else(|| panic!("no intent was written: {instance:#}"));
            let ours = row.instance_id.as_deref() == Some(instance["id"].to_string().as_str());
            let destroyed = instance["state"] == "destroyed";
            let kind = match (row.state, ours, destroyed) {
                (InstanceState::Owned, true, false) => "owned",
                (InstanceState::Destroyed, true, true) => "destroyed",
                // Given up before its reply came, or known to the market only.
                (InstanceState::Destroyed | InstanceState::Failed, false, true)
                    if row.instance_id.is_none() =>
                {
                    "never known"
                }
                _ => panic!("the books differ: {row:#?}\n{instance:#}"),
            };
            *rows.entry(kind).or_insert(0) += 1;
        }
        println!("contracts: {rows:?}");
    }

    /// `GET /spending` is no bill: a machine counts from its contract to its end, with its disk,
    /// while it boots as well; of what was never known nothing does. So it lies between the two.
    pub fn judge_spending(&self, ledger: &Value) {
        let (_, spending) = self.call("GET", "/spending", None);
        let said = spending["this_month"].as_f64().expect("dollars");
        let number = |i: &Value, key: &str| i[key].as_f64().unwrap_or(0.0);
        let (mut bill, mut whole) = (0.0, 0.0);
        let now = jiff::Timestamp::now().as_millisecond() as f64;
        for i in ledger["instances"].as_array().expect("instances") {
            let storage = number(i, "storage_cost");
            let end = i["destroyed_ms"].as_f64().unwrap_or(now);
            bill += number(i, "gpu_cost") + storage;
            whole += number(i, "dph_base") * (end - number(i, "created_ms")) / 3_600_000.0 + storage;
        }
        println!("spent: ${said:.4} are said, ${bill:.4} billed, ${whole:.4} if booting cost as well");
        assert!(
            said >= bill * 0.97 - 0.01 && said <= whole * 1.05 + 0.01,
            "${said:.4} are said to be spent, not ${bill:.4} to ${whole:.4}"
        );
    }
}
