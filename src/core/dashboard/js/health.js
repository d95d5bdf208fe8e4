// What is wrong with a service, why, and what it means for requests: in plain sentences.

/** Worst first. */
const HEALTHS = ["none", "failing", "fallback", "stale", "degraded", "ok"];
const HEALTH_WORDS = {
  none: "no peers", failing: "failing", fallback: "fallback", stale: "stale", degraded: "degraded", ok: "ok",
};
const HEALTH_MEANS = {
  none: "No peer can take a request",
  failing: "Consul doesn't give good answers",
  fallback: "Requests go to another tier than the first",
  stale: "What is known isn't confirmed by Consul",
  degraded: "Some peers are kept out",
  ok: "All is well",
};
const STATE_MEANS = {
  up: "takes requests",
  recovering: "its weight is growing (slow_start)",
  busy: "has as many requests as max_conns allows",
  unavail: "kept out after failures (max_fails)",
  draining: "takes no new clients",
  down: "taken out on purpose",
};
/** Consul lets a query wait 10 minutes, and a sixteenth more. */
const LONGEST_WAIT = 640;

/** Sets `health` and `reasons`, worst first. */
function diagnose(service) {
  const found = [];
  const say = (health, text) => found.push({ health, text });
  peersProblem(service, say);
  consulProblem(service, say);
  tierProblem(service, say);
  pendingProblem(service, say);
  peerNotes(service, say);
  found.sort((a, b) => HEALTHS.indexOf(a.health) - HEALTHS.indexOf(b.health));
  service.health = found[0]?.health ?? "ok";
  service.reasons = found;
}

function consulProblem(service, say) {
  const { raw } = service;
  const good = raw.last_good_seconds;
  if (raw.failures > 0 || raw.last_error) {
    const since = good === null ? "Consul has not given a good answer yet" : `No good answer for ${span(good)}`;
    const text = [sentence(`${since}: ${printable(raw.last_error ?? "no reason known")}`)];
    if (service.peers.length) text.push(`Requests go on to the last known ${plural(service.peers.length, "peer")}.`);
    if (raw.backoff_ms) text.push(`Next try in ${span(raw.backoff_ms / 1000)}.`);
    say("failing", text.join(" "));
    return;
  }
  const wait = raw.wait_ms ? (raw.wait_ms / 1000) * 1.1 + 15 : LONGEST_WAIT;
  if (raw.source === "state file") {
    say("stale", "The peers come from the state file: Consul hasn't answered since nginx started.");
  } else if (raw.source === "zone") {
    say("stale", "The peers are those from before the reload: Consul hasn't confirmed them since.");
  } else if (good > Math.max(wait, (raw.delay_ms ?? 0) / 250)) {
    say("stale", `The last good answer is ${span(good)} old, more than a query may wait.`);
  }
  if (raw.zone_full) {
    say("stale", "The shared zone is full: the last answer could not be taken over (consul_zone).");
  }
  if (raw.frozen) {
    say("stale", `Frozen${by(raw.frozen)}: what changes in Consul is not taken over.`);
  }
}

function peersProblem(service, say) {
  const { raw, peers, upstreams } = service;
  if (service.usable > 0) return;
  const wayOut = upstreams.length > 0 && upstreams.every((upstream) => upstream.in_use !== null);
  const text = [];
  if (peers.length) {
    text.push(`None of ${plural(peers.length, "peer")} takes requests: ${statesOf(service)}.`);
  } else if (raw.index || raw.last_good_seconds !== null) {
    const kind = raw.status === "any" ? "" : raw.status === "warning" ? "passing or warning " : "passing ";
    const since = raw.last_change_seconds === null ? "" : ` for ${span(raw.last_change_seconds)}`;
    text.push(`Consul has listed no ${kind}instance${since}.`);
  } else {
    text.push("Nothing is known of its instances.");
  }
  const stuck = upstreams.filter((upstream) => upstream.in_use === null).map((upstream) => printable(upstream.name));
  if (stuck.length) text.push(`Requests to ${listed(stuck)} get 502.`);
  say(wayOut ? "fallback" : "none", text.join(" "));
}

function tierProblem(service, say) {
  for (const upstream of service.upstreams) {
    const name = printable(upstream.name);
    const [first] = upstream.tiers;
    const mine = service.raw.datacenter;
    if (upstream.panic) {
      say("degraded", `Upstream ${name} is in panic mode: so many peers have failed that failures are ignored.`);
    }
    if (upstream.in_use === null || !first || upstream.in_use === first.name) continue;
    // The datacenter that helps out is not the one that is ill.
    if (mine && mine !== first.name && upstream.in_use.split(" ")[0] === mine) continue;
    const where = upstream.in_use === "servers" ? "its own server lines" : printable(upstream.in_use);
    const without = first.name === "instances" ? "none of its instances is" : `no peer in ${printable(first.name)} is`;
    say("fallback", `Upstream ${name} sends requests to ${where}: ${without} usable.`);
  }
}

function pendingProblem(service, say) {
  const { pending } = service.raw;
  if (!pending) return;
  const lacks = `The last answer lacks ${plural(pending.removals, "peer")}`;
  say(
    "stale",
    pending.of === 0
      ? `${lacks}; they stay in use (consul_empty keep).`
      : `${lacks}; they stay in use until ${plural(pending.of, "read")} agree (${pending.confirmed} so far).`,
  );
}

function peerNotes(service, say) {
  const { states, peers } = service;
  if (service.usable === 0) return;
  const of = (n) => `${n} of ${plural(peers.length, "peer")} ${n === 1 ? "is" : "are"}`;
  if (states.unavail) say("degraded", `${of(states.unavail)} kept out after failures (max_fails); the others take the requests.`);
  if (states.busy) say("degraded", `${of(states.busy)} full (max_conns).`);
  if (states.draining) say("ok", `${of(states.draining)} draining.`);
  if (states.down) say("ok", `${of(states.down)} down on purpose.`);
  if (states.recovering) say("ok", `${of(states.recovering)} coming back slowly (slow_start).`);
}

/** `2 unavail, 1 down`. */
function statesOf(service) {
  const named = PEER_STATES.filter((state) => service.states[state]);
  return named.map((state) => `${service.states[state]} ${state}`).join(", ");
}

/** ` by ann since 12:00:01, until 12:30:00` of an override or a freeze. */
function by({ by: who, since_ms: since, until_ms: until }) {
  const parts = [];
  if (who) parts.push(` by ${printable(who)}`);
  if (since) parts.push(` since ${clock(since)}`);
  if (until) parts.push(` until ${clock(until)}`);
  return parts.join("");
}

const worst = (service) => HEALTHS.indexOf(service.health);
const peerBadness = (peer) => ["unavail", "busy", "down", "draining", "recovering", "up"].indexOf(peer.raw.state);
