// What is known: the last answer, and what follows from comparing it with those before.

/** Looks back for the sparklines. */
const LOOKS = 60;
/** Share of the newest look in a peer's rate, so that bars don't jump with every request. */
const NEWEST = 0.4;

const PEER_STATES = ["up", "recovering", "busy", "unavail", "draining", "down"];

const model = {
  status: null,
  /** Of the answer, milliseconds of nginx's clock; of ours, where it doesn't say. */
  time: 0,
  services: [],
  known: new Map(),
  upstreams: new Map(),
  totals: { peers: 0, states: {}, healths: {}, inFlight: 0, picks: 0, fails: 0, rate: null, failRate: null },
  rates: [],
  /** The version that this page was loaded with. */
  version: null,
};

/** Takes over an answer that came at `now` (milliseconds). */
function ingest(status, now) {
  const time = status.time_ms ?? now;
  const seconds = model.status ? (time - model.time) / 1000 : 0;
  model.upstreams = new Map((status.upstreams ?? []).map((upstream) => [upstream.name, upstream]));
  const known = new Map();
  const add = (raw, isNamed) => {
    const key = serviceKey(raw, known);
    const service = model.known.get(key) ?? newService(key, raw);
    update(service, raw, seconds);
    service.isNamed = isNamed;
    known.set(key, service);
  };
  for (const raw of status.services ?? []) add(raw, false);
  for (const raw of status.on_demand?.services ?? []) add(raw, true);
  model.status = status;
  model.time = time;
  model.version ??= status.module?.version;
  model.known = known;
  model.services = [...known.values()];
  for (const service of model.services) diagnose(service);
  sumUp(seconds);
}

/** A short name that tells services apart, also in a link: one may be asked for in several ways. */
function serviceKey(raw, taken) {
  const parts = [raw.service, raw.datacenter, raw.from === "health" ? null : raw.from, ...(raw.tags ?? [])];
  parts.push(raw.status === "passing" ? null : raw.status, raw.filter);
  const key = parts.filter(Boolean).join("~");
  let unique = key;
  for (let n = 2; taken.has(unique); n++) unique = `${key}~${n}`;
  return unique;
}

function newService(key, raw) {
  return {
    key, raw, name: printable(raw.service), peers: [], byId: new Map(), isNamed: false,
    rate: null, rates: [], failRate: null, inFlight: 0, picks: 0, fails: 0, smooth: 0, weight: 0,
    states: {}, usable: 0, health: "ok", reasons: [], haystack: "",
  };
}

function update(service, raw, seconds) {
  service.raw = raw;
  service.upstreams = (raw.upstreams ?? []).map((name) => model.upstreams.get(name)).filter(Boolean);
  const names = [raw.service, raw.datacenter, ...(raw.upstreams ?? []), ...(raw.tags ?? [])];
  service.haystack = names.filter(Boolean).join("\n").toLowerCase();
  const byId = new Map();
  const sums = { inFlight: 0, picks: 0, fails: 0, smooth: 0, weight: 0, picked: 0, failed: 0 };
  const states = {};
  const ignoresFailures = service.upstreams.some((upstream) => upstream.panic);
  const isFirst = seconds <= 0 || service.peers.length === 0;
  service.peers = (raw.peers ?? []).map((peer) => {
    const id = `${peer.server} ${peer.service_id} ${peer.node}`;
    const before = service.byId.get(id);
    const record = before ?? newPeer(id, service);
    // A smaller count than before is another counter: nothing is known of what came between.
    const picked = before && seconds > 0 ? Math.max(0, peer.picks - before.raw.picks) : 0;
    const failed = before && seconds > 0 ? Math.max(0, peer.fails - before.raw.fails) : 0;
    if (seconds > 0) {
      record.rate = picked / seconds;
      record.smooth = (record.smooth ?? record.rate) * (1 - NEWEST) + record.rate * NEWEST;
    }
    refreshPeer(record, peer);
    byId.set(id, record);
    sums.inFlight += peer.in_flight;
    sums.picks += peer.picks;
    sums.fails += peer.fails;
    sums.smooth += record.smooth ?? 0;
    sums.weight += record.takes ? effective(peer) : 0;
    sums.picked += picked;
    sums.failed += failed;
    states[peer.state] = (states[peer.state] ?? 0) + 1;
    return record;
  });
  Object.assign(service, {
    byId, states, inFlight: sums.inFlight, picks: sums.picks, fails: sums.fails, smooth: sums.smooth,
    weight: sums.weight, picked: sums.picked, failed: sums.failed,
    usable: service.peers.filter((peer) => peer.takes || (ignoresFailures && peer.raw.state === "unavail")).length,
  });
  service.rate = seconds > 0 && !isFirst ? sums.picked / seconds : seconds > 0 ? 0 : null;
  service.failRate = seconds > 0 ? sums.failed / seconds : null;
  if (seconds > 0) remember(service.rates, service.rate);
}

function newPeer(id, service) {
  return { id, key: `p ${service.key} ${id}`, raw: null, service, rate: null, smooth: null, takes: true, haystack: "", tags: "" };
}

function refreshPeer(record, raw) {
  const before = record.raw;
  record.raw = raw;
  record.takes = raw.state !== "unavail" && raw.state !== "down" && raw.state !== "draining";
  const tags = (raw.tags ?? []).join("\n");
  if (!before || record.tags !== tags || before.health !== raw.health) {
    record.tags = tags;
    record.haystack = `${raw.server}\n${raw.node}\n${raw.service_id}\n${tags}\n${raw.health}`.toLowerCase();
  }
}

const effective = (raw) => raw.effective_weight ?? raw.weight;

/** Share of the service's requests: lately, else of all so far. */
function shareOf(peer) {
  const { service, raw } = peer;
  if (service.smooth > 0.05) return (peer.smooth ?? 0) / service.smooth;
  return service.picks > 0 ? raw.picks / service.picks : 0;
}

/** Share that its weight gives it among those that take requests. */
function expectedShare(peer) {
  const { service, raw } = peer;
  return peer.takes && service.weight > 0 ? effective(raw) / service.weight : 0;
}

function remember(values, value) {
  values.push(value);
  if (values.length > LOOKS) values.shift();
}

function sumUp(seconds) {
  const totals = { peers: 0, states: {}, healths: {}, inFlight: 0, picks: 0, fails: 0, picked: 0, failed: 0 };
  for (const service of model.services) {
    totals.peers += service.peers.length;
    for (const name of ["inFlight", "picks", "fails", "picked", "failed"]) totals[name] += service[name] ?? 0;
    for (const [state, n] of Object.entries(service.states)) totals.states[state] = (totals.states[state] ?? 0) + n;
    totals.healths[service.health] = (totals.healths[service.health] ?? 0) + 1;
  }
  totals.rate = seconds > 0 ? totals.picked / seconds : null;
  totals.failRate = seconds > 0 ? totals.failed / seconds : null;
  if (seconds > 0) remember(model.rates, totals.rate);
  model.totals = totals;
}
