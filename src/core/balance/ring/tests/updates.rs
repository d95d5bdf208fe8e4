//! Rings made from the one before.

use proptest::prelude::*;

use super::*;

#[test]
fn an_update_of_a_few_changes_the_points_in_place() {
    let first = equal(2000);
    let mut second = first.clone();
    second[77].name = "10.99.0.1:80".into();
    second[1977].weight = 3;
    second.remove(500);
    let before = ring(&first);
    let after = Ring::new(&second, Some((&before, &first)));
    assert!(is_shared(&before, &after));
    assert_eq!(points(&after), points(&ring(&second)));
    let many: Vec<Peer> = second.iter().take(1000).cloned().collect();
    let anew = Ring::new(&many, Some((&after, &second)));
    assert!(!is_shared(&anew, &after));
    assert_eq!(points(&after), points(&ring(&second)));
}

#[test]
fn a_ring_that_was_followed_finds_its_own_members_only() {
    let mut sets = vec![equal(20)];
    let mut rings = vec![ring(&sets[0])];
    for n in 0..20 {
        let mut set = sets[n].clone();
        set.remove(0);
        set.push(Peer { identity: 1000 + n as u64, weight: 1, name: format!("10.9.9.{n}:80") });
        rings.push(Ring::new(&set, Some((&rings[n], &sets[n]))));
        assert!(is_shared(&rings[n], &rings[n + 1]));
        sets.push(set);
        if n == 9 {
            for hash in keys(1000) {
                let name = |n: usize| {
                    let set = &sets[n];
                    move |peer: usize| &set[peer].name
                };
                let stays = |name: &&String| sets[0].iter().any(|peer| peer.name == **name);
                let expected = rings[10].walk(hash).map(name(10)).filter(stays).take(3);
                assert!(rings[0].walk(hash).map(name(0)).take(3).eq(expected), "{hash:#x}");
            }
        }
    }
    let mut walk = rings[0].walk(0);
    assert_eq!(walk.next(), None, "all its members have left");
    assert!(walk.left > 1000, "it goes on in vain");
}

#[test]
fn two_rings_after_the_same_one_are_both_right() {
    let set = equal(50);
    let first = ring(&set);
    let (fewer, others) = (without(&set, &set[3].name), without(&set, &set[9].name));
    let one = Ring::new(&fewer, Some((&first, &set)));
    let two = Ring::new(&others, Some((&first, &set)));
    assert_eq!(points(&one), points(&ring(&fewer)));
    assert_eq!(points(&two), points(&ring(&others)));
}

/// A change of a set; numbers mean a peer modulo how many there are.
#[derive(Clone, Debug)]
enum Change {
    Join(usize),
    Leave(usize),
    LeaveMany(usize),
    Weigh(usize, u32),
    Rename(usize),
    /// One that left comes back elsewhere.
    Replace(usize),
    Turn(usize),
    Swap(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (1usize..4).prop_map(Change::Join),
        1 => (20usize..60).prop_map(Change::Join),
        3 => any::<usize>().prop_map(Change::Leave),
        1 => (1usize..50).prop_map(Change::LeaveMany),
        3 => (any::<usize>(), 1u32..12).prop_map(|(i, weight)| Change::Weigh(i, weight)),
        2 => any::<usize>().prop_map(Change::Rename),
        1 => any::<usize>().prop_map(Change::Replace),
        1 => any::<usize>().prop_map(Change::Turn),
        1 => any::<(usize, usize)>().prop_map(|(i, j)| Change::Swap(i, j)),
    ]
}

#[derive(Default)]
struct Model {
    peers: Vec<Peer>,
    next: u32,
    spare_identities: Vec<u64>,
}

impl Model {
    fn name(&mut self) -> String {
        self.next += 1;
        format!("10.1.{}.{}:8{}", self.next / 256, self.next % 256, self.next % 7)
    }

    fn join(&mut self) {
        let name = self.name();
        let identity = self.spare_identities.pop().unwrap_or(self.next.into());
        let weight = if self.next % 5 == 0 { 3 } else { 1 };
        let place = self.next as usize * 31 % (self.peers.len() + 1);
        self.peers.insert(place, Peer { identity, weight, name });
    }

    fn apply(&mut self, change: &Change) {
        let count = self.peers.len();
        match *change {
            Change::Join(n) => (0..n).for_each(|_| self.join()),
            _ if count == 0 => {}
            Change::Leave(i) => {
                let gone = self.peers.remove(i % count);
                self.spare_identities.push(gone.identity);
            }
            Change::LeaveMany(n) => self.peers.truncate(count.saturating_sub(n)),
            Change::Weigh(i, weight) => self.peers[i % count].weight = weight,
            Change::Rename(i) => self.peers[i % count].name = self.name(),
            Change::Replace(i) => {
                let gone = self.peers.remove(i % count);
                self.spare_identities.push(gone.identity);
                self.join();
            }
            Change::Turn(i) => self.peers.rotate_left(i % count),
            Change::Swap(i, j) => self.peers.swap(i % count, j % count),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_updates_give_the_ring_of_a_build_from_nothing(
        changes in prop::collection::vec(change(), 1..25)
    ) {
        let mut model = Model::default();
        let mut updated = Ring::new::<Peer>(&[], None);
        for change in &changes {
            let old = model.peers.clone();
            model.apply(change);
            updated = Ring::new(&model.peers, Some((&updated, &old)));
            updated.shared.borrow().points.check();
            let fresh = ring(&model.peers);
            fresh.shared.borrow().points.check();
            prop_assert_eq!(updated.len(), fresh.len(), "after {:?}", change);
            prop_assert!(points(&updated) == points(&fresh), "after {:?}", change);
        }
    }
}
