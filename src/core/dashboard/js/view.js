// Which rows there are: search, filters, order, and what is open. All of it stands in the URL's
// fragment, so that a link shows another what one sees oneself.

const SORTS = ["problems", "name", "requests", "flight", "fails", "peers", "age"];
const EVERY = [1, 2, 5, 10, 30, 0];
/** With more peers than this, services start out closed. */
const FEW_PEERS = 24;

const view = {
  search: "",
  words: [],
  /** Healths and states to show; empty: all. */
  health: new Set(),
  state: new Set(),
  sort: "problems",
  every: 2,
  /** Services that were opened or closed by hand. */
  open: new Map(),
  opensByItself: false,
};

const isFiltered = () => view.words.length > 0 || view.health.size > 0 || view.state.size > 0;

function setSearch(text) {
  view.search = text;
  view.words = text.toLowerCase().split(/\s+/).filter(Boolean);
}

function readFragment() {
  const state = new URLSearchParams(location.hash.slice(1));
  const words = (name, among) => (state.get(name) ?? "").split(",").filter((word) => among.includes(word));
  setSearch(state.get("q") ?? "");
  view.health = new Set(words("health", HEALTHS));
  view.state = new Set(words("state", PEER_STATES));
  view.sort = words("sort", SORTS)[0] ?? "problems";
  const every = Number(state.get("every") ?? 2);
  view.every = EVERY.includes(every) ? every : 2;
  view.open = new Map();
  for (const key of state.getAll("open")) view.open.set(key, true);
  for (const key of state.getAll("shut")) view.open.set(key, false);
}

function writeFragment() {
  const state = new URLSearchParams();
  if (view.search) state.set("q", view.search);
  if (view.health.size) state.set("health", [...view.health].join(","));
  if (view.state.size) state.set("state", [...view.state].join(","));
  if (view.sort !== "problems") state.set("sort", view.sort);
  if (view.every !== 2) state.set("every", String(view.every));
  for (const [key, open] of view.open) state.append(open ? "open" : "shut", key);
  const fragment = state.toString();
  if (fragment !== location.hash.slice(1)) {
    history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  }
}

/** A few services show their peers at once; decided with the first answer, so that none shuts by itself. */
function decideWhatOpens() {
  view.opensByItself = model.services.length <= 3 && model.totals.peers <= FEW_PEERS;
}

/** Whether only some of a service's peers can match. */
const looksAtPeers = () => view.state.size > 0 || view.words.length > 0;

function isOpen(service, someMatch) {
  return view.open.get(service.key) ?? (view.opensByItself || someMatch);
}

/** Peers that match, and whether the search is about them rather than the service as a whole. */
function matching(service) {
  if (view.health.size && !view.health.has(service.health)) return null;
  const rest = view.words.filter((word) => !service.haystack.includes(word));
  if (!rest.length && !view.state.size) return { peers: service.peers, some: false };
  const fits = (peer) =>
    (!view.state.size || view.state.has(peer.raw.state)) && rest.every((word) => peer.haystack.includes(word));
  const peers = service.peers.filter(fits);
  return peers.length ? { peers, some: true } : null;
}

const byName = (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.key < b.key ? -1 : 1);
const SERVICE_ORDER = {
  problems: (a, b) => worst(a) - worst(b),
  name: () => 0,
  requests: (a, b) => (b.rate ?? 0) - (a.rate ?? 0),
  flight: (a, b) => b.inFlight - a.inFlight,
  fails: (a, b) => b.fails - a.fails,
  peers: (a, b) => b.peers.length - a.peers.length,
  age: (a, b) => (b.raw.last_good_seconds ?? Infinity) - (a.raw.last_good_seconds ?? Infinity) || 0,
};
const PEER_ORDER = {
  problems: (a, b) => peerBadness(a) - peerBadness(b),
  requests: (a, b) => (b.smooth ?? 0) - (a.smooth ?? 0),
  flight: (a, b) => b.raw.in_flight - a.raw.in_flight,
  fails: (a, b) => b.raw.fails - a.raw.fails,
};

/** The rows to show, in order. */
function makeRows() {
  const rows = [];
  const found = { services: 0, peers: 0, open: 0 };
  const order = SERVICE_ORDER[view.sort];
  for (const service of model.services.toSorted((a, b) => order(a, b) || byName(a, b))) {
    const match = matching(service);
    if (!match) continue;
    found.services += 1;
    found.peers += match.peers.length;
    const open = isOpen(service, match.some);
    rows.push({ kind: "service", key: `s ${service.key}`, service, open });
    if (!open) continue;
    found.open += 1;
    rows.push({ kind: "detail", key: `d ${service.key}`, service });
    if (!match.peers.length) continue;
    rows.push({ kind: "head", key: `h ${service.key}`, service });
    const peers = PEER_ORDER[view.sort] ? match.peers.toSorted(PEER_ORDER[view.sort]) : match.peers;
    for (const peer of peers) rows.push({ kind: "peer", key: peer.key, service, peer });
  }
  return { rows, found };
}
