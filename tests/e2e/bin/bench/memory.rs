//! Shared memory for each instance.

use nginx_consul_e2e::nginx::Config;
use serde_json::Value;

use crate::stage::Stage;
use crate::table::Table;
use crate::variants::{Setup, Variant};

/// What is in the zone with so many instances, and with twice as many.
const INSTANCES: usize = 1000;

/// Compares what two lengths of a service take.
pub(crate) fn measure(stage: &Stage) -> Table {
    let few = used(stage, INSTANCES);
    let many = used(stage, 2 * INSTANCES);
    let per_instance = (many - few) / INSTANCES as f64;
    eprintln!("memory: {per_instance:.0} bytes of the zone for an instance");
    let caption = format!("Memory of the zone, with {INSTANCES} instances and {INSTANCES} more");
    let head = ["in use, KB", "with as many again, KB", "bytes for each instance"];
    let mut table = Table::new(caption, head.map(str::to_owned));
    let kilobytes = |bytes: f64| format!("{:.0}", bytes / 1024.0);
    table.row([kilobytes(few), kilobytes(many), format!("{per_instance:.0}")]);
    table
}

/// Bytes of the zone in use once the service has so many peers.
fn used(stage: &Stage, length: usize) -> f64 {
    stage.register(Setup::Distinct, length);
    let variant = Variant::Ours("round_robin");
    let text = variant.configuration(stage, Setup::Distinct, length, 5);
    let nginx = Config::whole(&text).start();
    let answer = nginx.get("/consul?format=json");
    let status: Value = serde_json::from_str(&answer.body).expect("the status");
    let peers = status["services"][0]["peers"].as_array().map_or(0, Vec::len);
    assert_eq!(peers, length, "peers of the service");
    status["zone"]["used"].as_f64().expect("zone.used")
}
