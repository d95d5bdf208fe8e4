//! The response time of an instance, for `least_time`.
//!
//! It is a peak EWMA, as in Finagle's `p2c` and linkerd: the mean rises to a slower answer at once and
//! falls slowly, so requests avoid an instance in trouble before many of them wait for it. Without
//! answers it decays to nothing, so a slow instance is tried again now and then.

/// Time in which an old value loses all but 1/e of its weight, ms; Finagle's default.
const DECAY: f32 = 10_000.0;
/// Lowest value, ms: above 0, which means "no data", and far above subnormal numbers, which are slow.
const FLOOR: f32 = 0.001;
/// The mean assumed for an instance without data that has a request in flight, ms.
const PENALTY: f32 = 1e6;
/// Failures don't raise the mean above this, ms.
const MAX_DOUBLED: f32 = 60_000.0;
/// Up to where, in ms, 1 - x + x²/2 differs from e⁻ˣ by less than 4e-7.
const NEAR: u32 = 128;
/// Largest assumed difference between the clocks of two workers, ms.
const SKEW: u32 = 60_000;

/// The mean time to the response header, and when it was computed. It fits into one `u64`, so all
/// workers share it in one atomic: load it, compute [`Latency::after`], and compare and exchange. If
/// two workers do so at the same moment, losing one sample does no harm.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// Milliseconds; 0: no data.
    mean: f32,
    /// Milliseconds of the monotonic clock, modulo 2³².
    at: u32,
}

impl Latency {
    /// From what [`Latency::raw`] gave; 0 is no data.
    #[inline]
    pub fn from_raw(raw: u64) -> Latency {
        Latency { mean: f32::from_bits((raw >> 32) as u32), at: raw as u32 }
    }

    /// As one number: the mean above, the time below. 0 only if there is no data.
    #[inline]
    pub fn raw(self) -> u64 {
        u64::from(self.mean.to_bits()) << 32 | u64::from(self.at)
    }

    /// Whether there was no answer yet.
    #[inline]
    pub fn is_none(self) -> bool {
        self.mean.to_bits() == 0
    }

    /// The mean after one more answer, which took `sample` ms and came at `now`, ms of the monotonic clock.
    #[inline]
    pub fn after(self, sample: u64, now: u64) -> Latency {
        // Signed numbers are quicker to convert.
        let sample = (sample as i64 as f32).max(FLOOR);
        let mean = if sample >= self.mean {
            sample
        } else {
            let old = self.left_at(now);
            (self.mean * old + sample * (1.0 - old)).max(FLOOR)
        };
        // A clock that is behind must not make the next one decay the same time again.
        let at = if self.is_none() || self.age(now) > 0 { now as u32 } else { self.at };
        Latency { mean, at }
    }

    /// The mean after an attempt that failed after `elapsed` ms: twice what it was, so that an
    /// instance that refuses quickly, and has no answers that could raise it, is left alone for
    /// longer each time. At most a minute.
    pub fn after_failure(self, elapsed: u64, now: u64) -> Latency {
        let doubled = (2.0 * self.at(now)).clamp(1.0, MAX_DOUBLED) as u64;
        self.after(doubled.max(elapsed), now)
    }

    /// The decayed mean at `now`, in ms; 0 without data.
    #[inline]
    pub fn at(self, now: u64) -> f32 {
        if self.is_none() { 0.0 } else { (self.mean * self.left_at(now)).max(FLOOR) }
    }

    /// The weight of the old value.
    #[inline]
    fn left_at(self, now: u64) -> f32 {
        let age = self.age(now);
        let past = i64::from(age) as f32 * (1.0 / DECAY);
        // Peers with requests have recent values, for which the first terms of the series suffice.
        if age < NEAR { 1.0 - past * (1.0 - 0.5 * past) } else { far(past) }
    }

    /// Milliseconds since the mean was computed. Wraps after 49 days, when an instance that had no
    /// answer for so long looks slow for some seconds more.
    #[inline]
    fn age(self, now: u64) -> u32 {
        let age = (now as u32).wrapping_sub(self.at);
        if age > u32::MAX - SKEW { 0 } else { age }
    }
}

/// e⁻ˣ, as (e⁻ˣᐟ³²)³²: the C library's function would cost more than the rest of a pick. The error is
/// less than 0.02 % up to x = 1 and 2.5 % up to 5; beyond that the value hardly matters.
#[inline]
fn far(past: f32) -> f32 {
    let part = past.min(20.0) * (1.0 / 32.0);
    let mut left = 1.0 - part * (1.0 - 0.5 * part);
    for _ in 0..5 {
        left *= left;
    }
    left
}

/// What one more request costs an instance, to be compared with the others' cost at the same time:
/// `(latency + 1 ms) × (in flight + 1) / weight`, with a weight of at least 1.
///
/// An instance without data that has a request in flight counts as very slow, so a new instance gets
/// one request at a time until its first answer. If no instance has data, the least busy one for its
/// weight costs least.
#[inline]
pub fn score(latency: Latency, in_flight: u64, weight: i32, now: u64) -> f32 {
    let ms = match (latency.is_none(), in_flight) {
        (false, _) => latency.mean * latency.left_at(now),
        (true, 0) => 0.0,
        (true, _) => PENALTY,
    };
    (ms + 1.0) * (in_flight as i64 as f32 + 1.0) / weight as f32
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn failures_make_an_instance_dearer_each_time_however_quick_they_are() {
        let good = Latency::default().after(30, 1000);
        let mut mean = vec![good.at(1000)];
        let mut latency = good;
        for _ in 0..3 {
            latency = latency.after_failure(0, 1000);
            mean.push(latency.at(1000));
        }
        assert_eq!(mean, [30.0, 60.0, 120.0, 240.0]);
        assert_eq!(Latency::default().after_failure(0, 1000).at(1000), 1.0);
        assert_eq!(good.after_failure(5000, 1000).at(1000), 5000.0);
        let worst = (0..40).fold(good, |latency, _| latency.after_failure(0, 1000));
        assert_eq!(worst.at(1000), 60_000.0);
    }

    fn near(a: f32, b: f32) -> bool {
        (a - b).abs() <= 0.001 * b.abs().max(1.0)
    }

    #[test]
    fn no_data_is_zero_and_any_answer_is_not() {
        assert_eq!(Latency::default().raw(), 0);
        assert!(Latency::from_raw(0).is_none());
        assert_eq!(Latency::from_raw(0).at(5), 0.0);
        let first = Latency::from_raw(0).after(0, 0);
        assert!(first.raw() != 0 && !first.is_none());
        assert!(first.at(u64::from(u32::MAX) / 2) > 0.0);
    }

    #[test]
    fn raw_keeps_everything() {
        let latency = Latency::default().after(123, 456_789);
        assert_eq!(Latency::from_raw(latency.raw()), latency);
    }

    #[test]
    fn a_slower_answer_raises_it_at_once_and_faster_ones_lower_it_with_time() {
        let t = 1_700_000_000_000;
        let slow = Latency::default().after(10, t).after(200, t + 1);
        assert!(near(slow.at(t + 1), 200.0));
        assert!(near(slow.after(10, t + 1).at(t + 1), 200.0), "no time has passed");
        let e = (-1.0f32).exp();
        let later = slow.after(10, t + 10_001);
        assert!(near(later.at(t + 10_001), 200.0 * e + 10.0 * (1.0 - e)), "{later:?}");
        assert!(near(slow.at(t + 10_001), 200.0 * e), "unread it decays as well");
    }

    #[test]
    fn many_answers_lower_it_as_much_as_few_do() {
        let mut many = Latency::default().after(100, 0);
        for now in 1..=10_000 {
            many = many.after(10, now);
        }
        let few = Latency::default().after(100, 0).after(10, 10_000);
        assert!((many.at(10_000) - few.at(10_000)).abs() < 0.1, "{many:?} {few:?}");
    }

    #[test]
    fn old_values_decay_as_the_exponential_function_has_it() {
        let share = |ms: u32| Latency { mean: 1.0, at: 0 }.left_at(ms.into());
        for (ms, most) in [(1, 1e-6), (127, 1e-6), (128, 1e-6), (10_000, 2e-4), (50_000, 0.025)] {
            let exact = (-f64::from(ms) / 10_000.0).exp();
            let off = (f64::from(share(ms)) / exact - 1.0).abs();
            assert!(off < most, "after {ms} ms: {off}");
        }
        let shares: Vec<f32> = (0..400_000).step_by(50).map(share).collect();
        assert!(shares.windows(2).all(|pair| pair[0] >= pair[1]), "it never rises again");
        assert!(shares[shares.len() - 1] < 1e-7);
    }

    #[test]
    fn the_time_may_wrap_around() {
        let before = u64::from(u32::MAX) - 4999;
        let latency = Latency::default().after(100, before);
        assert!(near(latency.at(before + 10_000), 100.0 * (-1.0f32).exp()));
        let next = latency.after(10, before + 10_000);
        assert!(near(next.at(before + 20_000), next.at(before + 10_000) * (-1.0f32).exp()));
    }

    #[test]
    fn a_clock_that_is_behind_changes_nothing_but_what_was_slower() {
        let latency = Latency::default().after(100, 50_000);
        assert!(near(latency.at(49_000), 100.0));
        assert_eq!(latency.after(10, 49_000), latency);
        assert!(near(latency.after(300, 49_000).at(50_000), 300.0));
        let at_wrap = Latency::default().after(100, 1 << 32);
        assert!(near(at_wrap.at((1 << 32) - 500), 100.0));
    }

    #[test]
    fn the_score_grows_with_load_and_shrinks_with_weight() {
        let latency = Latency::default().after(9, 0);
        assert!(near(score(latency, 0, 1, 0), 10.0));
        assert!(near(score(latency, 3, 1, 0), 40.0));
        assert!(near(score(latency, 3, 4, 0), 10.0));
    }

    #[test]
    fn a_newcomer_gets_one_request_until_it_answers() {
        let known = Latency::default().after(500, 0);
        assert!(score(Latency::default(), 0, 1, 0) < score(known, 0, 1, 0));
        assert!(score(Latency::default(), 1, 1, 0) > score(known, 100, 1, 0));
        assert!(score(Latency::default(), 1, 1, 0) < score(Latency::default(), 2, 1, 0));
    }

    /// Ten peers, a thousand requests a second, two choices.
    struct Simulation {
        rng: SmallRng,
        now: f64,
        shared: [u64; 10],
        in_flight: [u64; 10],
        /// When requests end (µs), with whom, and when they began.
        ends: BinaryHeap<Reverse<(u64, usize, u64)>>,
    }

    impl Simulation {
        fn new() -> Simulation {
            Simulation {
                rng: SmallRng::seed_from_u64(7),
                now: 1e9,
                shared: [0; 10],
                in_flight: [0; 10],
                ends: BinaryHeap::new(),
            }
        }

        fn end_requests(&mut self) {
            while let Some(&Reverse((end, peer, start))) = self.ends.peek() {
                if end as f64 > self.now * 1000.0 {
                    break;
                }
                self.ends.pop();
                self.in_flight[peer] -= 1;
                let latency = Latency::from_raw(self.shared[peer]);
                self.shared[peer] = latency.after((end - start) / 1000, end / 1000).raw();
            }
        }

        /// Runs for that time; the share of requests that the first peer got. `took` is in ms.
        fn share(&mut self, seconds: f64, took: impl Fn(usize) -> f64) -> f64 {
            let until = self.now + seconds * 1000.0;
            let (mut first, mut all) = (0.0, 0.0);
            while self.now < until {
                self.now += -self.rng.random::<f64>().ln();
                self.end_requests();
                let one = self.rng.random_range(0..10);
                let other = (one + self.rng.random_range(1..10)) % 10;
                let now = self.now as u64;
                let cost = |peer: usize| {
                    score(Latency::from_raw(self.shared[peer]), self.in_flight[peer], 1, now)
                };
                let peer = if cost(other) < cost(one) { other } else { one };
                self.in_flight[peer] += 1;
                let start = (self.now * 1000.0) as u64;
                let took = took(peer) * self.rng.random_range(0.5..1.5);
                self.ends.push(Reverse((start + (took * 1000.0) as u64, peer, start)));
                all += 1.0;
                first += f64::from(u8::from(peer == 0));
            }
            first / all
        }
    }

    #[test]
    fn a_slow_peer_gets_little_and_recovers_when_it_is_fast_again() {
        let mut simulation = Simulation::new();
        let even = simulation.share(30.0, |_| 10.0);
        assert!((0.08..0.12).contains(&even), "all alike: {even}");
        let slow = simulation.share(60.0, |peer| if peer == 0 { 100.0 } else { 10.0 });
        assert!(slow < 0.02, "ten times slower: {slow}");
        simulation.share(60.0, |_| 10.0);
        let again = simulation.share(30.0, |_| 10.0);
        assert!((0.08..0.12).contains(&again), "fast again: {again}");
    }
}
