// The top of the page: counts that are filters too, requests in all, the zone, and notices.

const overview = { healths: new Map(), states: new Map() };

function startOverview() {
  const root = byId("overview");
  const filters = (names, chosen, chips, words, means) => {
    const group = make("div", "chips");
    for (const name of names) {
      const number = make("b", "");
      const chip = make("button", `chip is-${name}`, make("i", "dot"), number, ` ${words?.[name] ?? name}`);
      chip.type = "button";
      chip.dataset.filter = name;
      chip.title = means[name];
      chip.addEventListener("click", () => {
        const set = view[chosen];
        if (!set.delete(name)) set.add(name);
        changedView();
      });
      chips.set(name, { chip, number });
      group.append(chip);
    }
    return group;
  };
  overview.services = tile("Services", makeBar(HEALTHS));
  overview.peers = tile("Peers", makeBar(PEER_STATES));
  overview.requests = tile("Requests per second", null);
  overview.zone = tile("Shared zone", null);
  overview.services.box.append(filters(HEALTHS, "health", overview.healths, HEALTH_WORDS, HEALTH_MEANS));
  overview.peers.box.append(filters(PEER_STATES, "state", overview.states, null, STATE_MEANS));
  overview.spark = makeSpark(300, 44, "total");
  overview.requests.box.append(overview.spark.svg);
  overview.use = make("i", "fill");
  overview.meter = make("div", "track meter", overview.use);
  overview.meter.setAttribute("role", "img");
  overview.state = make("p", "note");
  overview.onDemand = make("p", "note");
  overview.connections = make("p", "note");
  overview.zone.box.append(overview.meter, overview.state, overview.connections, overview.onDemand);
  root.append(...["services", "peers", "requests", "zone"].map((name) => overview[name].box));
}

function tile(title, bar) {
  const [value, note] = [make("b", "value"), make("span", "note")];
  const box = make("section", "tile", make("h2", "", title), make("p", "figure", value, note));
  if (bar) box.append(bar.bar);
  return { box, value, note, bar };
}

function updateOverview() {
  const { totals, status, services } = model;
  const good = totals.healths.ok ?? 0;
  const wrong = services.length - good;
  setText(overview.services.value, count(wrong || good));
  setText(overview.services.note, wrong ? `of ${count(services.length)} ${wrong === 1 ? "needs" : "need"} a look` : "all well");
  setAttribute(overview.services.box, "data-level", wrong ? "bad" : "ok");
  overview.services.bar.update(totals.healths, "services by health");
  setText(overview.peers.value, count(totals.peers));
  setText(overview.peers.note, totals.peers === (totals.states.up ?? 0) ? "all up" : `${count(totals.states.up ?? 0)} up`);
  overview.peers.bar.update(totals.states, "peers by state");
  updateChips(overview.healths, totals.healths, view.health, ["ok", "none", "failing"]);
  updateChips(overview.states, totals.states, view.state, ["up", "unavail", "down"]);
  setText(overview.requests.value, rate(totals.rate));
  const fails = totals.failRate > 0 ? `, ${rate(totals.failRate)} fails/s` : "";
  setText(overview.requests.note, `${count(totals.inFlight)} in flight${fails}`);
  setAttribute(overview.requests.box, "data-level", totals.failRate > 0 ? "bad" : "ok");
  overview.spark.update(model.rates, LOOKS);
  updateZone(status);
}

/** Chips of what there is, of what is chosen, and of what one always wants to see at nought. */
function updateChips(chips, counts, chosen, always) {
  for (const [name, { chip, number }] of chips) {
    const n = counts[name] ?? 0;
    setText(number, count(n));
    setAttribute(chip, "aria-pressed", chosen.has(name));
    setAttribute(chip, "data-none", n === 0 ? "yes" : null);
    setHidden(chip, n === 0 && !chosen.has(name) && !always.includes(name));
  }
}

function updateZone({ zone, state, connections, on_demand: onDemand }) {
  const share = zone.size ? zone.used / zone.size : 0;
  setText(overview.zone.value, percent(share));
  setText(overview.zone.note, `of ${bytes(zone.size)} in ${printable(zone.name)}`);
  setStyle(overview.use, "width", `${(share * 100).toFixed(1)}%`);
  setAttribute(overview.meter, "aria-label", `${percent(share)} in use`);
  setAttribute(overview.zone.box, "data-level", share > 0.9 || state?.error ? "bad" : "ok");
  let text = "no state file";
  if (state) text = state.error ? `state file can't be written: ${printable(state.error)}` : `state file written ${ago(state.age_seconds)}`;
  setText(overview.state, text);
  setAttribute(overview.state, "title", state ? printable(state.path) : null);
  setText(overview.connections, connections ? `${count(connections.used)} of ${count(connections.max)} watch connections` : "");
  setHidden(overview.connections, !connections);
  setText(overview.onDemand, onDemand ? `${count(onDemand.services.length)} of at most ${count(onDemand.max)} services on demand` : "");
  setHidden(overview.onDemand, !onDemand);
}

function updateFound(found) {
  const all = found.services === model.services.length && !isFiltered();
  const text = `${plural(found.services, "service")}, ${plural(found.peers, "peer")}`;
  const among = `${text} of ${count(model.services.length)} and ${count(model.totals.peers)}`;
  setText(byId("found"), all ? text : among);
  setHidden(byId("clear"), !isFiltered());
  setText(byId("fold"), found.open ? "Collapse all" : "Expand all");
  const empty = byId("empty");
  setHidden(empty, found.services > 0);
  setText(empty, model.services.length ? "Nothing matches the search and the filters." : "No upstream follows a service yet.");
}

/** The footer: who answered, and what this page costs. */
function updateFoot(cost) {
  const { nginx, module } = model.status;
  const text = [
    `nginx-consul ${module.version}`,
    `nginx ${nginx.version}, worker ${nginx.worker} (pid ${nginx.pid})`,
    `asked in ${Math.round(cost.asked)} ms, drawn in ${Math.max(1, Math.round(cost.drawn))} ms`,
  ];
  const foot = byId("foot");
  if (!foot.firstChild) {
    const link = make("a", "", "JSON");
    link.href = source();
    foot.append(make("span", ""), " · ", link);
  }
  setText(foot.firstChild, text.join(" · "));
}

/** Title and icon tell what is wrong without the page in front. */
function updateTitle(lost) {
  const wrong = model.services.filter((service) => worst(service) < HEALTHS.indexOf("degraded")).length;
  const title = lost ? "? nginx-consul" : wrong ? `(${wrong}) nginx-consul` : "nginx-consul";
  if (document.title !== title) document.title = title;
  const serious = model.services.some((service) => service.health === "none");
  const colour = lost ? "%23888" : serious ? "%23d92d3a" : wrong ? "%23d98a00" : "%2312946b";
  const icon = `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><circle cx='8' cy='8' r='7' fill='${colour}'/></svg>`;
  setAttribute(byId("icon"), "href", icon);
}
