//! How an instance reads in the Vast protocol.

use serde_json::{Value, json};

use crate::cell::{columns, hardware_row};
use crate::hardware::Hardware;
use crate::market::seconds;
use crate::offers::Machine;
use crate::state::{Instance, State, Status};
use crate::switches::Padding;
use crate::volumes::Volumes;

/// An instance as it is read now.
pub struct InstanceView<'a> {
    pub state: &'a State,
    pub instance: &'a Instance,
    machine: &'a Machine,
    pub now_ms: i64,
}

impl<'a> InstanceView<'a> {
    /// `None` where there is no such machine, which cannot be.
    pub fn new(state: &'a State, instance: &'a Instance, now_ms: i64) -> Option<Self> {
        Some(Self {
            state,
            instance,
            machine: state.universe.machines.get(instance.machine)?,
            now_ms,
        })
    }

    fn hardware(&self) -> Hardware<'a> {
        Hardware {
            machine: self.machine,
            gpus: &self.instance.gpus,
        }
    }

    fn running(&self) -> bool {
        self.instance.status == Status::Running
    }

    fn when_running<T>(&self, value: T) -> Option<T> {
        self.running().then_some(value)
    }

    fn wanted(&self) -> &'static str {
        if self.instance.status == Status::Frozen {
            "frozen"
        } else if self.instance.intended_running || self.instance.queued {
            "running"
        } else {
            "stopped"
        }
    }

    fn cur_state(&self) -> &'static str {
        match self.instance.status {
            Status::Running | Status::Rebooting | Status::Frozen => "running",
            Status::Exited | Status::Stopped => "stopped",
            _ => "unloaded",
        }
    }

    fn ssh_port(&self) -> Option<u16> {
        let injected = self.running() && self.instance.order.injects_ssh();
        self.instance.ssh_port().filter(|_| injected)
    }

    fn address(&self) -> String {
        let live = self.instance.live.as_ref();
        live.map_or_else(|| "127.0.0.1".to_owned(), |m| m.address().to_string())
    }

    fn public_address(&self) -> String {
        match self.state.switches.padding {
            Padding::Newline => format!("{}\n", self.address()),
            Padding::None => self.address(),
        }
    }

    /// The proxy is this host's; without one the machine itself is reached.
    fn ssh_host(&self) -> Option<String> {
        self.ssh_port()?;
        Some(match self.instance.proxy_port {
            Some(_) => "127.0.0.1".to_owned(),
            None => self.address(),
        })
    }

    /// Clients add one to the proxy port of a Jupyter instance.
    fn proxy_port(&self) -> Option<u16> {
        let direct = self.ssh_port();
        let port = self.instance.proxy_port.filter(|_| direct.is_some()).or(direct)?;
        let jupyter = image_runtype(&self.instance.order.runtype).contains("jupyter");
        Some(port - u16::from(jupyter))
    }

    fn ports(&self) -> Option<Value> {
        let order = &self.instance.order;
        let opened = order.env.iter().map(|(k, _)| k.as_str());
        self.when_running(())
            .map(|()| ports(opened, self.ssh_port().filter(|_| order.direct)))
    }

    fn end(&self) -> f64 {
        seconds(self.instance.ends_ms)
    }

    fn min_bid(&self) -> f64 {
        self.state.quote(self.instance.machine, self.now_ms).min_bid * self.instance.gpus.len() as f64
    }
}

columns! { InstanceColumn<'a> of v: InstanceView<'a>; i = v.instance, order = &i.order, m = v.machine => {
    id: i.id,
    label: order.label.as_deref(),
    bundle_id: 900_000_000 + i.offer_id,
    actual_status: i.status.as_str(),
    intended_status: v.wanted(),
    cur_state: v.cur_state(),
    next_state: v.wanted(),
    status_msg: i.status_msg.as_str(),
    is_bid: order.bid.is_some(),
    min_bid: v.min_bid(),
    image_uuid: order.image.as_str(),
    image_args: json!(order.args),
    image_runtype: image_runtype(&order.runtype),
    extra_env: json!(order.env),
    onstart: order.onstart.as_deref(),
    template_id: (),
    template_hash_id: order.template.as_deref(),
    template_name: (),
    jupyter_token: format!("{:016x}", i.id),
    ssh_host: v.ssh_host(),
    ssh_idx: "1",
    ssh_port: v.proxy_port(),
    machine_dir_ssh_port: v.ssh_port(),
    public_ipaddr: v.public_address(),
    local_ipaddrs: v.address(),
    direct_port_start: -1,
    direct_port_end: -1,
    start_date: seconds(i.created_ms),
    end_date: v.end(),
    duration: (v.end() - seconds(v.now_ms)).max(0.0),
    uptime_mins: v.when_running(i.meter.running_seconds(v.now_ms) / 60.0),
    client_run_time: 1.1,
    host_run_time: 2_592_000.0,
    gpu_util: v.when_running(0.0),
    gpu_temp: v.when_running(33.0),
    cpu_util: 0.0,
    mem_usage: v.when_running(0.5),
    mem_limit: m.cpu_ram_mb as f64 / 1000.0,
    vmem_usage: v.when_running(0.0),
    disk_space: order.disk_gb,
    disk_usage: if v.running() { 0.1 } else { -1.0 },
    disk_util: if v.running() { 0.01 } else { -1.0 },
    dph_base: i.price.dph_base,
    dph_total: i.price.dph_total(),
    search: i.price.as_search_value(),
    instance: i.price.as_search_value(),
    storage_cost: m.storage_cost,
    storage_total_cost: i.price.storage_total_cost,
    country_code: m.geolocation.rsplit(", ").next(),
    credit_balance: (),
    volume_info: volume_info(&v.state.volumes, i),
    ports: v.ports(),
}}

hardware_row!(InstanceView, InstanceColumn, optional ports);

fn volume_info(volumes: &Volumes, instance: &Instance) -> Value {
    let mounted = instance.volume.iter().filter_map(|(id, path)| {
        let volume = volumes.alive(*id)?;
        Some(json!({
            "id": id, "name": volume.name(), "mount_path": path, "total_space": volume.size_gb,
            "avail_space": volume.size_gb,
        }))
    });
    mounted.collect()
}

/// What rows report for a requested run type.
fn image_runtype(asked: &str) -> String {
    match asked {
        "" => "ssh ssh_proxy".to_owned(),
        "args" => "args".to_owned(),
        other if other.starts_with("ssh ") || other == "ssh" || other.contains("jupyter") => other.to_owned(),
        other => format!("ssh {other}"),
    }
}

/// Docker's port map. A machine shares the host's loopback, so what it opens is
/// reached under the same number; only SSH has a port of its own, where it is direct.
fn ports<'a>(env_keys: impl Iterator<Item = &'a str>, ssh: Option<u16>) -> Value {
    let binding =
        |port: &str| json!([{"HostIp": "0.0.0.0", "HostPort": port}, {"HostIp": "::", "HostPort": port}]);
    let mut map = serde_json::Map::new();
    if let Some(ssh) = ssh {
        map.insert("22/tcp".to_owned(), binding(&ssh.to_string()));
    }
    for option in env_keys.filter_map(|k| k.strip_prefix("-p ")) {
        let inside = option.trim().rsplit(':').next().unwrap_or_default();
        let (port, protocol) = inside.split_once('/').unwrap_or((inside, "tcp"));
        if port != "22" && port.parse::<u16>().is_ok() {
            map.insert(format!("{port}/{protocol}"), binding(port));
        }
    }
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_run_types() {
        let map = ports(
            ["-p 8000:8000", "-p 9000:9000/udp", "A", "-p x:y", "-p 70:22"].into_iter(),
            Some(41022),
        );
        assert_eq!(
            map["22/tcp"][0],
            json!({"HostIp": "0.0.0.0", "HostPort": "41022"})
        );
        assert_eq!(map["8000/tcp"][0]["HostPort"], "8000");
        assert_eq!(map["9000/udp"][1]["HostPort"], "9000");
        assert_eq!(map.as_object().map(|m| m.len()), Some(3));
        assert_eq!(image_runtype("ssh_direc ssh_proxy"), "ssh ssh_direc ssh_proxy");
        assert_eq!(image_runtype("ssh"), "ssh");
    }
}
