// The rows of the list: a service, the head of its peers' columns, and a peer.

const cell = (className, ...children) => {
  const element = make("div", className, ...children);
  element.setAttribute("role", "gridcell");
  return element;
};

function rowElement(className, level) {
  const element = make("div", `row ${className}`);
  element.setAttribute("role", "row");
  element.setAttribute("aria-level", level);
  return element;
}

/** `2/3` of the state words, for those who can't see the bar. */
function peersLabel(service) {
  if (!service.peers.length) return "no peers";
  return `${plural(service.peers.length, "peer")}: ${statesOf(service)}`;
}

function buildService() {
  const element = rowElement("service service-grid", 1);
  element.tabIndex = -1;
  const arrow = makeSvg("svg", { class: "arrow", viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" });
  arrow.append(makeSvg("path", { d: "M6 3.5 10.5 8 6 12.5" }));
  const [name, badge, about] = [make("bdi", "name"), make("span", "badge"), make("span", "about")];
  const title = cell("title", arrow, make("div", "names", make("span", "line", name, badge), about));
  const [up, bar, columns] = [make("span", "up-count"), makeBar(PEER_STATES), make("div", "peer-columns")];
  const [now, spark] = [make("span", "big"), makeSpark(120, 28, "small")];
  const [flight, fails, age] = [cell("n flight"), cell("n fails"), cell("n age")];
  const why = cell("why");
  element.append(title, cell("peers", columns, bar.bar, up), cell("rate", now, spark.svg), flight, fails, age, why);
  return {
    element,
    update({ service, open }) {
      const { raw } = service;
      setAttribute(element, "aria-expanded", open);
      setAttribute(element, "data-health", service.health);
      setText(name, service.name);
      setText(badge, HEALTH_WORDS[service.health]);
      setAttribute(badge, "title", HEALTH_MEANS[service.health]);
      setText(about, aboutService(service));
      updatePeerColumns(columns, service);
      setHidden(bar.bar, !columns.hidden);
      bar.update(service.states, peersLabel(service));
      setText(up, service.peers.length ? `${service.usable}/${service.peers.length}` : "none");
      setText(now, rate(service.rate));
      spark.update(service.rates, LOOKS);
      setText(flight, count(service.inFlight));
      setText(fails, service.failRate > 0 ? `${count(service.fails)} · ${rate(service.failRate)}/s` : count(service.fails));
      setAttribute(fails, "data-bad", service.failRate > 0 ? "yes" : null);
      setText(age, ago(raw.last_good_seconds));
      const reasons = service.reasons.filter((reason) => reason.health !== "ok" || service.health === "ok");
      setText(why, reasons.map((reason) => reason.text).join(" "));
      setHidden(why, reasons.length === 0);
    },
  };
}

/** A service with more peers shows them as one bar of their states. */
const MOST_COLUMNS = 24;

/** A column per peer, as high as its share of the requests. */
function updatePeerColumns(columns, service) {
  const { peers } = service;
  const few = peers.length > 0 && peers.length <= MOST_COLUMNS;
  setHidden(columns, !few);
  if (!few) return;
  setAttribute(columns, "title", peersLabel(service));
  setChildren(columns, String(peers.length), () => peers.map(() => make("i", "")));
  const longest = Math.max(1e-9, ...peers.map(shareOf));
  peers.forEach((peer, at) => {
    const column = columns.children[at];
    setAttribute(column, "class", `is-${peer.raw.state}`);
    setStyle(column, "height", `${(18 + (shareOf(peer) / longest) * 82).toFixed(0)}%`);
  });
}

/** How the service is asked for, and who uses it. */
function aboutService({ raw, isNamed }) {
  const parts = [];
  const upstreams = (raw.upstreams ?? []).map(printable);
  if (upstreams.length) parts.push(`→ ${upstreams.join(", ")}`);
  if (isNamed) parts.push(`named by requests, last ${ago(raw.last_used_seconds)}`);
  if (raw.datacenter) parts.push(`in ${printable(raw.datacenter)}`);
  if (raw.from && raw.from !== "health") parts.push(`from ${raw.from}`);
  if (raw.status && raw.status !== "passing") parts.push(`status ${raw.status}`);
  for (const tag of raw.tags ?? []) parts.push(`tag ${printable(tag)}`);
  if (raw.filter) parts.push(`filter ${printable(raw.filter)}`);
  return parts.join(" · ");
}

const PEER_COLUMNS = [
  ["state", "State"], ["where", "Server"], ["who", "Id, node"], ["share", "Share of requests"],
  ["n per-second", "Req/s"], ["n flight", "In flight"], ["n fails", "Fails"], ["n weight", "Weight"], ["n latency", "Latency"],
];

function buildHead() {
  const element = rowElement("head peer-grid", 2);
  for (const [className, word] of PEER_COLUMNS) {
    const column = make("span", className, word);
    column.setAttribute("role", "columnheader");
    element.append(column);
  }
  return { element, update: ({ service }) => setAttribute(element, "data-health", service.health) };
}

function buildPeer() {
  const element = rowElement("peer peer-grid", 2);
  element.tabIndex = -1;
  const [dot, word] = [make("i", "dot"), make("span", "word")];
  const [server, marks] = [make("bdi", "server"), make("span", "marks")];
  const [id, node, tags] = [make("bdi", "id"), make("bdi", "node"), make("span", "tags")];
  const [fill, mark, share] = [make("i", "fill"), make("i", "expected"), make("span", "percent")];
  const parts = {};
  for (const name of ["per-second", "flight", "fails", "weight", "latency"]) parts[name] = cell(`n ${name}`);
  element.append(
    cell("state", dot, word),
    cell("where", server, marks),
    cell("who", id, " ", node, tags),
    cell("share", make("div", "track", fill, mark), share),
    ...Object.values(parts),
  );
  return {
    element,
    update({ service, peer }) {
      const { raw } = peer;
      setAttribute(element, "data-state", raw.state);
      setAttribute(element, "data-health", service.health);
      setText(word, raw.state);
      setAttribute(word, "title", STATE_MEANS[raw.state]);
      setText(server, printable(raw.server));
      setText(id, printable(raw.service_id));
      setText(node, printable(raw.node));
      setAttribute(node, "title", raw.datacenter ? `datacenter ${printable(raw.datacenter)}` : null);
      updateMarks(marks, raw);
      updateTags(tags, peer);
      updateShare(peer, fill, mark, share);
      setText(parts["per-second"], rate(peer.rate));
      setText(parts.flight, raw.max_conns > 0 ? `${count(raw.in_flight)} of ${count(raw.max_conns)}` : count(raw.in_flight));
      setAttribute(parts.flight, "title", connectionsTitle(raw.connections));
      setText(parts.fails, count(raw.fails));
      setAttribute(parts.fails, "data-bad", raw.fails > 0 ? "yes" : null);
      const changed = raw.effective_weight !== undefined && raw.effective_weight !== raw.weight;
      setText(parts.weight, changed ? `${weight(raw.effective_weight)} of ${raw.weight}` : count(raw.weight));
      setAttribute(parts.weight, "title", changed ? `in effect: ${raw.effective_weight}, wanted: ${raw.weight}` : null);
      setText(parts.latency, typeof raw.latency_ms === "number" ? `${rate(raw.latency_ms)} ms` : "–");
    },
  };
}

function connectionsTitle(connections) {
  if (!connections) return null;
  const { idle, active, opened, reused } = connections;
  return `connections: ${count(idle)} idle, ${count(active)} active, ${count(opened)} opened; ${count(reused)} requests on one in use before`;
}

/** What is out of the ordinary with a peer: backup, Consul's word, an override. */
function updateMarks(marks, raw) {
  const words = [];
  if (raw.backup) words.push(["backup", "used when those without are not usable"]);
  if (raw.health && raw.health !== "passing") words.push([printable(raw.health), "Consul's word for its health"]);
  if (raw.override) {
    const { action, weight } = raw.override;
    words.push([`set ${action}${action === "weight" ? ` ${weight}` : ""}`, `set${by(raw.override)}`]);
  }
  setChildren(marks, words.join("\n"), () =>
    words.map(([word, title]) => {
      const mark = make("span", "tag strong", word);
      mark.title = title;
      return mark;
    }),
  );
}

/** Room for so many tags in a row; all of them are in its title. */
const SHOWN_TAGS = 3;

function updateTags(tags, peer) {
  const all = peer.raw.tags ?? [];
  setChildren(tags, peer.tags, () => {
    const shown = all.slice(0, SHOWN_TAGS).map((tag) => make("bdi", "tag", printable(tag)));
    if (all.length > SHOWN_TAGS) shown.push(make("span", "tag", `+${all.length - SHOWN_TAGS}`));
    return shown;
  });
  setAttribute(tags, "title", all.length ? all.map(printable).join(", ") : null);
}

function updateShare(peer, fill, mark, share) {
  const [is, expected] = [shareOf(peer), expectedShare(peer)];
  // The longest bar of a service fills its track, whether there are two peers or two hundred.
  const room = Math.max(peer.service.longest ?? 0, 1e-9);
  setStyle(fill, "width", `${Math.min(100, (is / room) * 100).toFixed(1)}%`);
  setHidden(mark, expected === 0);
  setStyle(mark, "left", `${Math.min(99, (expected / room) * 100).toFixed(1)}%`);
  setAttribute(mark, "title", `its weight stands for ${percent(expected)}`);
  setText(share, percent(is));
}

const BUILD = { service: buildService, detail: buildDetail, head: buildHead, peer: buildPeer };
