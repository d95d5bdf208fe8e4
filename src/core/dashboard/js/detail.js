// What an open service shows above its peers: how it is kept in step with Consul, where its
// requests go, and what changed last.

/** Changes shown of a service's history. */
const SHOWN_CHANGES = 6;

function buildDetail() {
  const element = rowElement("detail", 2);
  const spark = makeSpark(600, 70, "wide");
  const scale = make("p", "scale");
  const [facts, ways, history] = [make("dl", "facts"), make("div", "ways"), make("ol", "history")];
  const sync = panel("In step with Consul", facts);
  const traffic = panel("Requests per second", spark.svg, scale, ways);
  const changes = panel("Last changes", history);
  element.append(cell("panels", sync, traffic, changes));
  return {
    element,
    update({ service }) {
      setAttribute(element, "data-health", service.health);
      spark.update(service.rates, LOOKS);
      setText(scale, scaleText(service));
      updateFacts(facts, service);
      updateWays(ways, service);
      updateHistory(history, service);
      setHidden(changes, !service.raw.history);
    },
  };
}

const panel = (title, ...children) => make("section", "panel", make("h3", "", title), ...children);

function scaleText(service) {
  const known = service.rates.filter((value) => value !== null);
  const now = service.rate === null ? "–" : rate(service.rate);
  return known.length ? `now ${now}, most seen ${rate(Math.max(...known))}, ${count(service.picks)} so far` : "";
}

/** Pairs of a word and what is known of it; those without are left out. */
function factsOf({ raw }) {
  const refusals = Object.entries(raw.refusals ?? {}).map(([reason, n]) => `${reason} ${count(n)}`);
  const others = (raw.servers ?? []).filter((server) => server !== raw.server).map(printable);
  const delay = raw.delay_ms ? `, changes seen within ${span(raw.delay_ms / 1000)}` : "";
  return [
    ["server", raw.server ? printable(raw.server) : "none yet", raw.server ? "" : "bad"],
    ["others", others.join(", ")],
    ["last good", ago(raw.last_good_seconds), raw.failures > 0 ? "bad" : ""],
    ["last change", ago(raw.last_change_seconds)],
    ["source", sourceWord(raw.source)],
    ["mode", `${raw.mode}${delay}`],
    ["index", `${raw.index}, generation ${raw.generation}`],
    ["failures", raw.failures ? `${count(raw.failures)} in a row` : "", "bad"],
    ["error", raw.last_error ? printable(raw.last_error) : "", "bad"],
    ["next try", raw.backoff_ms ? `in ${span(raw.backoff_ms / 1000)}` : ""],
    ["refused", refusals.join(", ")],
    ["connections", connectionsOf(raw.peers ?? [])],
    ["frozen", raw.frozen ? by(raw.frozen).trim() || "yes" : "", "bad"],
  ].filter(([, value]) => value);
}

/** What is kept of connections to the peers, and how many requests found one. */
function connectionsOf(peers) {
  const kept = peers.map((peer) => peer.connections).filter(Boolean);
  if (!kept.length) return "";
  const [idle, active, opened, reused] = ["idle", "active", "opened", "reused"].map((name) =>
    kept.reduce((sum, one) => sum + one[name], 0),
  );
  const share = opened + reused ? `, ${percent(reused / (opened + reused))} of requests on one in use before` : "";
  return `${count(idle)} idle, ${count(active)} active${share}`;
}

function sourceWord(source) {
  if (source === "live" || source === "consul") return "live";
  if (source === "zone") return "kept from before the reload";
  return source ?? "none yet";
}

function updateFacts(facts, service) {
  const pairs = factsOf(service);
  const names = pairs.map(([name, , kind]) => `${name} ${kind}`).join();
  setChildren(facts, names, () => pairs.flatMap(([name, , kind]) => [make("dt", "", name), make("dd", kind)]));
  pairs.forEach(([, value], at) => setText(facts.children[at * 2 + 1], value));
}

function updateWays(ways, service) {
  const mark = JSON.stringify(service.upstreams);
  setChildren(ways, mark, () => service.upstreams.map(wayOf));
}

/** `api  round_robin  [dc1 3/3] → [servers]`, the tier in use filled. */
function wayOf(upstream) {
  const tiers = upstream.tiers.flatMap((tier, at) => {
    const counted = tier.peers === null ? "" : ` ${tier.usable}/${tier.peers}`;
    const chip = make("span", "tier", make("bdi", "", printable(tier.name)), counted);
    if (tier.name === upstream.in_use) chip.dataset.used = "yes";
    if (tier.usable === 0) chip.dataset.empty = "yes";
    chip.title = tier.name === upstream.in_use ? "requests go here" : tier.usable === 0 ? "none usable" : "not in use";
    return at ? [make("span", "then", "→"), chip] : [chip];
  });
  const words = [make("bdi", "name", printable(upstream.name)), make("span", "method", printable(upstream.method))];
  if (upstream.panic) words.push(make("span", "tag strong", "panic"));
  if (upstream.in_use === null) words.push(make("span", "tag strong", "none usable"));
  return make("p", "way", ...words, ...tiers);
}

function updateHistory(history, service) {
  const changes = (service.raw.history ?? []).slice(0, SHOWN_CHANGES);
  const mark = changes.map((change) => `${change.time_ms} ${change.generation}`).join();
  setChildren(history, `${mark};`, () =>
    changes.length ? changes.map(changeOf) : [make("li", "none", "None since nginx knows the service.")],
  );
  changes.forEach((change, at) => {
    setText(history.children[at].firstChild, ago(Math.max(0, model.time - change.time_ms) / 1000));
  });
}

function changeOf(change) {
  const item = make("li", "", make("time", ""));
  item.firstChild.title = new Date(change.time_ms).toISOString();
  const side = (addresses, total, sign, className) => {
    for (const address of addresses ?? []) item.append(make("span", className, `${sign}${printable(address)}`));
    const more = (total ?? 0) - (addresses ?? []).length;
    if (more > 0) item.append(make("span", className, `${sign}${count(more)} more`));
  };
  side(change.joined, change.joined_total, "+", "joined");
  side(change.left, change.left_total, "−", "left");
  const changed = change.changed_total ?? 0;
  if (changed > 0 || item.childNodes.length === 1) {
    item.append(make("span", "dim", changed > 0 ? `${plural(changed, "peer")} changed` : "parameters changed"));
  }
  return item;
}
