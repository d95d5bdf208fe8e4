//! Instructions of a request whose connection is kept, where picking and pooling are small.

use std::path::Path;

use super::contenders::Contender;
use super::peers::Peers;
use crate::callgrind::Counted;
use crate::table::Table;

const CLIENTS: usize = 8;
const REQUESTS: usize = 2400;
const LENGTH: usize = 3;

pub(super) fn measure(peers: &Peers, keep: Option<&Path>) -> Table {
    let caption = "User-space instructions per request (callgrind) at N = 3, in thousands";
    let mut table = Table::new(caption, ["".to_owned(), "instructions".into(), "ratio".into()]);
    let all = [Contender::Static(64), Contender::Over(64), Contender::Ours(64)];
    let mut base = None;
    for contender in all {
        let count = per_request(peers, contender, keep);
        let base = *base.get_or_insert(count);
        eprintln!("distinct: instructions, {}: {count:.0}", contender.title());
        table.row([
            contender.title(),
            format!("{:.2}", count / 1000.0),
            format!("{:.3}", count / base),
        ]);
    }
    table
}

fn per_request(peers: &Peers, contender: Contender, keep: Option<&Path>) -> f64 {
    let nginx = Counted::start(&contender.configuration(peers, LENGTH), 1);
    let mut clients = nginx.connect(CLIENTS);
    let mut ask = |n: usize| {
        let answer = clients[n % CLIENTS].get("/");
        let answer = answer.unwrap_or_else(|error| panic!("{error}\n{}", nginx.told()));
        assert_eq!(answer.status, 200, "{}", nginx.told());
    };
    (0..20 * CLIENTS).for_each(&mut ask);
    nginx.switch(true);
    (0..REQUESTS).for_each(&mut ask);
    nginx.switch(false);
    drop(clients);
    let keep = keep.map(|folder| folder.join(contender.title().replace(['`', '*', ' ', ','], "")));
    nginx.end(keep.as_deref()).total as f64 / REQUESTS as f64
}
