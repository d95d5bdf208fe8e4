// The rhythm: ask, compare, draw; say plainly when there is no answer.

/** Longest that an answer may take, milliseconds. */
const PATIENCE = 15_000;

const asking = { busy: false, timer: 0, good: null, error: null, cost: { asked: 0, drawn: 0 } };

/** The one service that the page's URL asks for; `null`: all. */
const wantedService = () => new URLSearchParams(location.search).get("service") || null;

/** The JSON of this very page, of one service if that was asked for. */
function source() {
  const query = new URLSearchParams({ format: "json" });
  const service = wantedService();
  if (service !== null) query.set("service", service);
  return `${location.pathname}?${query}`;
}

async function refresh() {
  clearTimeout(asking.timer);
  if (asking.busy) return;
  asking.busy = true;
  const start = performance.now();
  try {
    const headers = { Accept: "application/json" };
    const answer = await fetch(source(), { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.status === 404 && wantedService() !== null) throw new Error("nginx follows no service of that name");
    if (!answer.ok) throw new Error(`nginx answers ${answer.status} ${answer.statusText}`.trim());
    const status = await answer.json();
    const came = performance.now();
    take(status);
    asking.cost = { asked: came - start, drawn: performance.now() - came };
    updateFoot(asking.cost);
  } catch (error) {
    asking.error = error.name === "TimeoutError" ? `no answer within ${PATIENCE / 1000} s` : printable(error.message);
  }
  asking.busy = false;
  showLive();
  schedule();
}

function take(status) {
  const isFirst = !model.status;
  ingest(only(status), Date.now());
  asking.good = Date.now();
  asking.error = null;
  if (isFirst) {
    for (const id of ["overview", "filters", "columns"]) byId(id).hidden = false;
    decideWhatOpens();
  }
  draw();
}

/** The one service that the page's URL asks for, also from an nginx that answers with all. */
function only(status) {
  const wanted = wantedService();
  if (wanted === null) return status;
  const services = (status.services ?? []).filter((service) => service.service === wanted);
  const onDemand = status.on_demand && {
    ...status.on_demand,
    services: status.on_demand.services.filter((service) => service.service === wanted),
  };
  return { ...status, services, on_demand: onDemand };
}

function draw() {
  if (!model.status) return;
  updateOverview();
  const { rows, found } = makeRows();
  updateFound(found);
  for (const service of model.services) service.longest = 0;
  for (const row of rows) {
    if (row.kind === "peer") {
      row.service.longest = Math.max(row.service.longest, shareOf(row.peer), expectedShare(row.peer));
    }
  }
  showRows(rows);
  updateTitle(asking.error !== null);
}

function changedView() {
  writeFragment();
  draw();
}

function schedule() {
  clearTimeout(asking.timer);
  if (view.every && !document.hidden) asking.timer = setTimeout(refresh, view.every * 1000);
  showLive();
}

/** Whether what is shown is from now, and since when it is not. */
function showLive() {
  const live = byId("live");
  const age = asking.good === null ? null : (Date.now() - asking.good) / 1000;
  let [state, text] = ["live", "live"];
  if (asking.error !== null) [state, text] = ["lost", age === null ? "no data" : `${span(age)} old`];
  else if (asking.good === null) [state, text] = ["waiting", "loading"];
  else if (!view.every) [state, text] = ["paused", `paused, ${span(age)} old`];
  setAttribute(live, "data-state", state);
  setText(byId("live-text"), text);
  setAttribute(document.body, "data-lost", asking.error === null ? null : "yes");
  showNotices();
}

function showNotices() {
  const notices = [];
  if (asking.error !== null) {
    const from = asking.good === null ? "" : ` What you see is from ${clock(asking.good)}.`;
    notices.push(["bad", `${sentence(`No data: ${asking.error}`)}${from} Trying again.`]);
  }
  const version = model.status?.module?.version;
  if (model.version && version !== model.version) {
    notices.push(["", `nginx runs nginx-consul ${printable(version)} now: reload this page.`]);
  }
  const service = wantedService();
  if (service !== null) notices.push(["", `Only the service ${printable(service)}.`, location.pathname, "Show all"]);
  setChildren(byId("notices"), JSON.stringify(notices), () =>
    notices.map(([kind, text, href, word]) => {
      const notice = make("p", `notice ${kind}`, text);
      if (href) {
        const link = make("a", "", word);
        link.href = href;
        notice.append(" ", link);
      }
      return notice;
    }),
  );
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(asking.timer);
  else if (view.every) refresh();
});
// Ages go on while answers don't come.
setInterval(() => {
  if (!document.hidden && (asking.error !== null || !view.every)) showLive();
}, 1000);

startOverview();
startControls();
startList(byId("list"));
readFragment();
showView();
refresh();
