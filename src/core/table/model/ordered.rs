//! Orders: a new generation of the same block.

use super::*;

fn order() -> Order {
    Order {
        subject: Subject::Instance { scope: 1, upstream: 0, identity: 1 },
        action: Action::Drain,
        since_ms: 1,
        until_ms: 0,
        service: String::new(),
        instance: String::new(),
        upstream: String::new(),
        by: String::new(),
    }
}

#[test]
fn a_set_that_is_to_be_looked_at_anew_is_whole_and_so_is_the_next_one() {
    check(2, || {
        let me = process(1);
        let zone = published(me);
        let writer = start(&zone, move |table| {
            table.give_orders(&[order()], me).expect("room");
            publish(table, KEY, &[2], me);
        });
        if let Some((generation, peers)) = read(zone.table(), 0, KEY) {
            assert!(matches!((generation, &peers[..]), (1 | 3, [1]) | (4, [2])), "{generation}");
        }
        writer.join().expect("ordered");
        assert_eq!(read(zone.table(), 0, KEY), Some((4, vec![2])));
    });
}

#[test]
fn an_order_whose_writer_is_killed_anywhere_is_known_to_everybody_or_to_nobody() {
    kill_at_every_store(
        1,
        |table, me| {
            table.give_orders(&[order()], me).expect("room");
        },
        |table, me| {
            table.heal(me);
            let orders = table.orders();
            assert!(orders.is_empty() || orders == [order()], "{orders:?}");
            assert!(orders.is_empty() || table.generation(0) > 1, "nobody was told");
        },
    );
}
