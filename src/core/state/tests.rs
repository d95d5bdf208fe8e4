use std::fs;
use std::num::NonZeroU16;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use proptest::prelude::*;
use siphasher::sip128::SipHasher13;

use super::content::NAME;
use super::file::{load, quarantine, save};
use super::peers::distinct;
use super::*;
use crate::address::AddressFilter;
use crate::clock::Clock;
use crate::model::{Action, Health, Meta, Override, Peer, PeerSet, identity, of_instance};
use crate::params::Params;
use crate::process::ProcessId;
use crate::table::Table;
use crate::table::testing::{peer, set, zone};

/// Longest file that is read.
const LIMIT: u64 = 1 << 20;

fn saved(key: u128, ports: std::ops::Range<u16>) -> Saved {
    let peers = set(ports);
    Saved {
        key,
        service: "web".to_owned(),
        template: None,
        index: 4711,
        last_good_ms: 41_000,
        peers,
    }
}

fn weighted() -> Override {
    let (weight, upstream) = (NonZeroU16::new(5), Some("api".into()));
    Override { weight, upstream, ..of_instance("web-1", Action::Weight) }
}

fn state() -> State {
    State {
        written_ms: 42_000,
        boot: Some(Boot { id: "x".to_owned(), monotonic_ms: 2_000 }),
        targets: vec![saved(7, 8081..8084), saved(u128::MAX, 1..1)],
        overrides: vec![of_instance("web-2", Action::Drain), weighted()],
    }
}

fn content_error(content: &str) -> String {
    match State::decode_content(content.as_bytes()) {
        Err(Damage::Content(why)) => why,
        other => panic!("{other:?} of {content}"),
    }
}

#[test]
fn the_format_is_as_documented() {
    let one = State { targets: vec![saved(7, 80..81)], overrides: Vec::new(), ..state() };
    let text = String::from_utf8(one.encode()).unwrap();
    let (first, content) = text.split_once('\n').unwrap();
    let sum = SipHasher13::new().hash(content.as_bytes()).as_u128();
    assert_eq!(first, format!("nginx-consul-state 1 {sum:032x}"));
    assert_eq!(
        content,
        "{\"written_ms\":42000,\"boot\":{\"id\":\"x\",\"monotonic_ms\":2000},\"services\":[{\"key\":7,\
         \"service\":\"web\",\"index\":4711,\"last_good_ms\":41000,\"peers\":[\
         {\"address\":\"127.0.0.1:80\",\"weight\":1,\"node\":\"n1\",\"id\":\"web-80\",\
         \"tags\":[\"v1\"],\"health\":\"passing\",\"datacenter\":\"dc1\"}]}]}"
    );
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    let bytes = state().encode();
    assert_eq!(State::decode(&bytes), Ok(state()));
    for length in 0..bytes.len() {
        assert!(State::decode(&bytes[..length]).is_err(), "cut to {length}");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            assert!(State::decode(&bytes).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn the_damage_is_named() {
    let good = String::from_utf8(state().encode()).unwrap();
    let end = good.find('\n').unwrap();
    for (line, damage) in [
        ("something else", Damage::Header),
        ("nginx-consul-state one 1", Damage::Header),
        ("nginx-consul-state", Damage::Header),
        (&good[..end].replacen('1', "2", 1), Damage::Version(2)),
        (&good[..end - 1], Damage::Checksum),
        (&good[..end].to_uppercase().replacen("NGINX-CONSUL-STATE", NAME, 1), Damage::Checksum),
        (&format!("{} ", &good[..end]), Damage::Checksum),
    ] {
        let bytes = format!("{line}{}", &good[end..]);
        assert_eq!(State::decode(bytes.as_bytes()), Err(damage), "{line}");
    }
    assert_eq!(State::decode(b""), Err(Damage::Header));
    assert_eq!(State::decode(&good.as_bytes()[..good.len() - 1]), Err(Damage::Checksum));
    assert_eq!(State::decode(format!("{good} ").as_bytes()), Err(Damage::Checksum));
}

#[test]
fn content_that_makes_no_sense_is_refused_whatever_its_checksum_says() {
    let good = serde_json::to_string(&state()).unwrap();
    assert_eq!(State::decode_content(good.as_bytes()), Ok(state()));
    for (old, new, why) in [
        ("127.0.0.1:8081", "127.0.0.1:0", "the address 127.0.0.1:0 has no port"),
        ("127.0.0.1:8081", "localhost:80", "invalid socket address"),
        ("\"weight\":1", "\"weight\":0", "nonzero"),
        ("\"weight\":1", "\"weight\":65536", "65536"),
        ("\"health\":\"passing\"", "\"health\":[]", "invalid type"),
        ("\"key\":7", "\"key\":0", "service \"web\": its key is not its own"),
        ("\"key\":7", "\"key\":-7", "out of range"),
        ("\"key\":7", "\"key\":340282366920938463463374607431768211455", "not its own"),
        ("\"weight\":5,", "\"weight\":0,", "nonzero"),
        ("\"weight\":5,", "\"weight\":null,", "an override is none"),
        ("\"action\":\"weight\"", "\"action\":\"drain\"", "an override is none"),
        ("\"action\":\"weight\"", "\"action\":\"freeze\"", "an override is none"),
        ("\"index\":4711", "\"index\":-1", "-1"),
        ("written_ms", "written", "written_ms"),
    ] {
        let bad = good.replacen(old, new, 1);
        assert_ne!(bad, good, "{old} is not in it");
        let error = content_error(&bad);
        assert!(error.contains(why), "{new}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn of_two_peers_with_one_identity_the_first_counts() {
    let mut peers: Vec<Peer> = [80, 81].map(|port| peer(port, 1)).to_vec();
    peers[1].id = peers[0].id.clone();
    peers[1].identity = peers[0].identity;
    let twice = Saved { peers: PeerSet::new(peers.clone()), ..saved(7, 0..0) };
    let bytes = State { written_ms: 1, targets: vec![twice], ..State::default() }.encode();
    let read = State::decode(&bytes).unwrap();
    assert_eq!(read.targets[0].peers.peers(), &peers[..1]);
}

#[test]
fn an_answer_from_the_future_has_no_age() {
    let saved = saved(7, 0..0);
    assert_eq!(saved.age_ms(42_000), Some(1_000));
    assert_eq!(saved.age_ms(40_999), None);
}

#[test]
fn what_the_table_holds_is_what_is_saved() {
    let table = Table::create(zone(1 << 17), 16).unwrap();
    let me = ProcessId::own();
    let entry = table.claim(7, me).unwrap();
    let addr = "[fe80::1%3]:443".parse().unwrap();
    let v6 = Peer {
        addr,
        identity: identity("n2", "db", Some(addr)),
        node: "n2".to_owned(),
        id: "db".to_owned(),
        health: Health::Warning,
        ..peer(443, u16::MAX)
    };
    let set = PeerSet::new(vec![peer(8081, 5), v6]);
    table.publish((entry, 7), &set, Clock::at(1_000), me).unwrap();
    let peers = table.read(entry, 7).unwrap().peer_set().unwrap();
    assert_eq!(peers, set);
    let targets = vec![Saved { peers, ..saved(7, 0..0) }];
    let state = State { written_ms: 1, targets, ..State::default() };
    assert_eq!(State::decode(&state.encode()).unwrap().targets[0].peers.digest(), set.digest());
}

/// The answer is 1 s old and an override ends in 3 s, as it is written; then somebody sets the wall
/// clock to `wall`, and it is read after 2 s: when the answer came and the override ends by it.
fn read_after_2_s(wall: u64, boot: impl FnOnce(Boot) -> Option<Boot>) -> (u64, Option<u64>) {
    let before = Clock { wall: 1_700_000_000_000, monotonic: Clock::now().monotonic };
    let now = Clock { wall, monotonic: before.monotonic + 2_000 };
    let answer = Saved { last_good_ms: before.wall - 1_000, ..saved(7, 1..2) };
    let until_ms = Some(before.wall + 3_000);
    let drain = Override { until_ms, ..of_instance("web-1", Action::Drain) };
    let mut state = State::new(before, vec![answer], vec![drain]);
    state.boot = state.boot.and_then(boot);
    let mut state = State::decode(&state.encode()).unwrap();
    state.to_wall_clock(now);
    let once = state.clone();
    state.to_wall_clock(now);
    assert_eq!(state, once, "it may be done again");
    (state.targets[0].last_good_ms, state.overrides[0].until_ms)
}

#[test]
fn in_the_same_boot_ages_and_deadlines_are_exact_whatever_happens_to_the_wall_clock() {
    for wall in [1_700_000_002_000, 1_699_996_400_000, 1_700_003_600_000, 5_000] {
        assert_eq!(read_after_2_s(wall, Some), (wall - 3_000, Some(wall + 1_000)));
    }
}

#[test]
fn what_another_boot_wrote_is_read_by_the_wall_clock() {
    let written = (1_699_999_999_000, Some(1_700_000_003_000));
    for wall in [1_700_000_002_000, 1_699_996_400_000, 1_700_003_600_000] {
        let other = |boot| Some(Boot { id: "another".to_owned(), ..boot });
        assert_eq!(read_after_2_s(wall, other), written);
        assert_eq!(read_after_2_s(wall, |_| None), written, "a file of an earlier version");
        // A namespace can have a monotonic clock of its own.
        let later = |boot: Boot| Some(Boot { monotonic_ms: boot.monotonic_ms + 9_000, ..boot });
        assert_eq!(read_after_2_s(wall, later), written);
    }
}

fn any_peer() -> impl Strategy<Value = Peer> {
    let text = ".{0,12}";
    let health = prop::sample::select(vec![Health::Passing, Health::Warning, Health::Critical]);
    (any::<std::net::IpAddr>(), 1..=u16::MAX, 1..=u16::MAX, any::<bool>(), health)
        .prop_flat_map(move |numbers| {
            (Just(numbers), text, text, prop::collection::vec(text, 0..3), text)
        })
        .prop_map(|((ip, port, weight, several, health), node, id, tags, datacenter)| {
            let addr = (ip, port).into();
            Peer {
                addr,
                weight: NonZeroU16::new(weight).unwrap(),
                identity: identity(&node, &id, several.then_some(addr)),
                node,
                id,
                tags,
                health,
                datacenter,
                params: Params { max_conns: Some(3), backup: several, ..Params::default() },
                meta: Meta::from([("group".to_owned(), weight.to_string())]),
            }
        })
}

fn any_state() -> impl Strategy<Value = State> {
    let numbers = (any::<u64>(), any::<u64>(), prop::option::of(1..=u128::MAX));
    let target = (1..=u128::MAX, ".*", numbers, prop::collection::vec(any_peer(), 0..6)).prop_map(
        |(key, service, (index, last_good_ms, template), peers)| Saved {
            key,
            service,
            template,
            index,
            last_good_ms,
            peers: distinct(peers),
        },
    );
    (any::<u64>(), prop::collection::vec(target, 0..5)).prop_map(|(written_ms, mut targets)| {
        targets.sort_by_key(|target| target.key);
        targets.dedup_by_key(|target| target.key);
        State { written_ms, targets, ..State::default() }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(state in any_state()) {
        prop_assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn a_changed_or_cut_file_is_refused(
        state in any_state(),
        at in any::<prop::sample::Index>(),
        change in 1..=255u8,
    ) {
        let mut bytes = state.encode();
        let at = at.index(bytes.len());
        prop_assert!(State::decode(&bytes[..at]).is_err());
        bytes[at] ^= change;
        prop_assert!(State::decode(&bytes).is_err());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(State::decode(&bytes).is_err());
        let _ = State::decode_content(&bytes);
    }

    #[test]
    fn what_is_accepted_is_written_the_same_way(
        state in any_state(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut content = serde_json::to_vec(&state).unwrap();
        let at = at.index(content.len());
        content[at] = byte;
        if let Ok(read) = State::decode_content(&content) {
            prop_assert_eq!(State::decode(&read.encode()), Ok(read));
        }
    }
}

#[test]
fn a_file_is_replaced_as_a_whole_and_only_its_owner_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    assert!(load(&path, LIMIT).unwrap().is_none(), "there is none yet");
    fs::write(folder.path().join("state.tmp"), vec![b'x'; 10_000]).unwrap();
    assert!(save(&path, &state().encode()).unwrap());
    assert_eq!(
        load(&path, LIMIT).unwrap(),
        Some(state()),
        "what a killed writer left is no hindrance"
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let before = fs::metadata(&path).unwrap().ino();
    assert!(save(&path, &State::default().encode()).unwrap());
    assert_eq!(load(&path, LIMIT).unwrap(), Some(State::default()));
    assert_ne!(fs::metadata(&path).unwrap().ino(), before, "written over in place");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "left-overs");
}

#[test]
fn two_writers_never_mix_and_the_second_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let busy = fs::File::create(folder.path().join("state.tmp")).unwrap();
    rustix::fs::flock(&busy, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(!save(&path, b"second").unwrap());
    assert!(!path.exists());
    drop(busy);
    assert!(save(&path, b"second").unwrap());
}

#[test]
fn nothing_of_others_is_written_over_in_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (path, temporary) = (folder.path().join("state"), folder.path().join("state.tmp"));
    let victim = folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::hard_link(&victim, &temporary).unwrap();
    assert!(save(&path, &state().encode()).unwrap());
    symlink(&victim, &temporary).unwrap();
    assert!(save(&path, &state().encode()).unwrap());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(load(&path, LIMIT).unwrap(), Some(state()));
}

#[test]
fn an_excluded_address_is_not_taken_from_the_file_either() {
    let deny = vec![crate::address::IpNet::from(std::net::IpAddr::from([127, 0, 0, 2]))];
    let mut peers = [peer(80, 1), peer(81, 1)];
    peers[1].addr.set_ip([127, 0, 0, 2].into());
    let saved = Saved { peers: PeerSet::new(peers.to_vec()), ..saved(7, 0..0) };
    let filter = AddressFilter { allow: Vec::new(), deny };
    assert_eq!(saved.permitted(&filter).peers(), &peers[..1]);
    assert_eq!(saved.permitted(&AddressFilter::default()), saved.peers);
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    assert!(save(&path, &state().encode()).unwrap());
    // Neither to be opened as a file, nor to be removed as one.
    fs::create_dir(folder.path().join("state.tmp")).unwrap();
    assert!(save(&path, b"new").is_err());
    assert_eq!(load(&path, LIMIT).unwrap(), Some(state()));
    assert!(save(&folder.path().join("nowhere/state"), b"new").is_err());
}

#[test]
fn a_damaged_file_is_quarantine_whatever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let damaged = |why: &str| {
        let error = load(&path, LIMIT).unwrap_err();
        assert!(matches!(error, LoadError::Damaged(_)), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
        quarantine(&path).unwrap()
    };
    fs::write(&path, "garbage").unwrap();
    let aside = damaged("first line");
    assert_eq!(fs::read_to_string(&aside).unwrap(), "garbage");
    symlink("/dev/zero", &path).unwrap();
    damaged("symbolic link");
    assert!(fs::symlink_metadata(&aside).unwrap().is_symlink(), "in place of the earlier one");
    // A fifo would block its reader.
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    damaged("not a regular file");
    assert!(load(&path, LIMIT).unwrap().is_none());
    fs::write(&path, vec![b'x'; LIMIT as usize + 1]).unwrap();
    damaged("it is longer than 1048576 bytes");
    // An operator's directory is left alone.
    fs::create_dir(&path).unwrap();
    let error = load(&path, LIMIT).unwrap_err();
    assert!(matches!(error, LoadError::Io(_)), "{error:?}");
    assert_eq!(error.to_string(), "is a directory");
}

/// Names the file to the process that [`a_writer_killed_at_any_moment_leaves_a_whole_file`] kills.
const WRITER: &str = "NGINX_CONSUL_TEST_STATE_WRITER";

#[test]
fn a_writer_killed_at_any_moment_leaves_a_whole_file() {
    let states = [0..4000, 0..100].map(|ports| {
        let ports = ports.start + 1..ports.end + 1;
        State { written_ms: 1, targets: vec![saved(7, ports)], ..State::default() }
    });
    if let Some(path) = std::env::var_os(WRITER) {
        let files = states.map(|state| state.encode());
        loop {
            for bytes in &files {
                assert!(save(path.as_ref(), bytes).unwrap());
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut left_over = 0;
    for round in 0..16_u64 {
        let mut writer = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "state::tests::a_writer_killed_at_any_moment_leaves_a_whole_file"])
            .env(WRITER, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let before = fs::metadata(&path).map_or(0, |file| file.ino());
        while fs::metadata(&path).map_or(0, |file| file.ino()) == before {
            assert!(writer.try_wait().unwrap().is_none(), "the writer ended by itself");
            std::thread::yield_now();
        }
        // Some fraction of a write later.
        let end = std::time::Instant::now() + std::time::Duration::from_micros(round * 243);
        while std::time::Instant::now() < end {}
        writer.kill().unwrap();
        writer.wait().unwrap();
        let found = load(&path, LIMIT).unwrap().expect("a state file");
        assert!(states.contains(&found), "round {round}");
        left_over += usize::from(folder.path().join("state.tmp").exists());
    }
    assert!(left_over > 0, "no writer was killed in the middle: nothing was tested");
}
