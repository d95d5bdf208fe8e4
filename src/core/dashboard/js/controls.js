// Mouse and keyboard.

const THEMES = { auto: "as the system", light: "light", dark: "dark" };

function startControls() {
  const search = byId("search");
  search.addEventListener("input", () => {
    setSearch(search.value);
    changedView();
  });
  byId("sort").addEventListener("change", (event) => {
    view.sort = event.target.value;
    changedView();
  });
  byId("every").addEventListener("change", (event) => setEvery(Number(event.target.value)));
  byId("clear").addEventListener("click", clearFilters);
  byId("fold").addEventListener("click", foldAll);
  byId("theme").addEventListener("click", nextTheme);
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("list").addEventListener("click", clickRow);
  addEventListener("keydown", pressKey);
  addEventListener("hashchange", () => {
    readFragment();
    showView();
    changedView();
  });
  showTheme(storedTheme());
}

/** Puts what the fragment said into the controls. */
function showView() {
  const search = byId("search");
  if (search.value !== view.search) search.value = view.search;
  byId("sort").value = view.sort;
  byId("every").value = String(view.every);
}

function setEvery(seconds) {
  if (seconds === 0 && view.every) view.before = view.every;
  view.every = seconds;
  showView();
  writeFragment();
  seconds ? refresh() : schedule();
}

function clearFilters() {
  setSearch("");
  view.health.clear();
  view.state.clear();
  showView();
  changedView();
}

function foldAll() {
  const anyOpen = list.rows.some((row) => row.kind === "service" && row.open);
  // All of them, so that the fragment stays short: what opens by itself is what was asked for.
  view.open.clear();
  view.opensByItself = !anyOpen;
  if (anyOpen) for (const row of list.rows) if (row.kind === "service" && looksAtPeers()) view.open.set(row.service.key, false);
  changedView();
}

function setOpen(service, open) {
  view.open.set(service.key, open);
  if (open === view.opensByItself && !looksAtPeers()) view.open.delete(service.key);
  changedView();
}

function rowOf(target) {
  const element = target.closest?.("[data-key]");
  return element && list.rows[list.at.get(element.dataset.key)];
}

function clickRow(event) {
  const row = rowOf(event.target);
  // Who selects text wants to copy it.
  if (!row || !canBeActive(row) || String(getSelection())) return;
  list.active = row.key;
  if (row.kind === "service") setOpen(row.service, !row.open);
  else paint();
}

function pressKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const { target, key } = event;
  if (target === byId("search")) {
    if (key === "Escape") {
      clearFilters();
      target.blur();
    } else if (key === "Enter" || key === "ArrowDown") toFirstRow();
    else return;
  } else if (target.matches?.("select, input")) {
    return;
  } else {
    const act = KEYS[key];
    if (!act || (target.matches?.("button, a") && key === "Enter")) return;
    act();
  }
  event.preventDefault();
}

function toFirstRow() {
  list.active = null;
  move(1);
}

function activeRow() {
  return list.rows[list.at.get(list.active)];
}

function toggleActive() {
  const row = activeRow();
  if (row?.kind === "service") setOpen(row.service, !row.open);
}

function goRight() {
  const row = activeRow();
  if (row?.kind === "service" && !row.open) setOpen(row.service, true);
  else if (row?.kind === "service") move(1);
}

function goLeft() {
  const row = activeRow();
  if (row?.kind === "peer") activate(list.at.get(`s ${row.service.key}`));
  else if (row?.open) setOpen(row.service, false);
}

const KEYS = {
  "/": () => byId("search").select(),
  j: () => move(1),
  k: () => move(-1),
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  ArrowRight: goRight,
  ArrowLeft: goLeft,
  Enter: toggleActive,
  Home: toFirstRow,
  End: () => {
    list.active = null;
    move(-1);
  },
  e: foldAll,
  p: () => setEvery(view.every ? 0 : (view.before ?? 2)),
  t: nextTheme,
  "?": () => byId("keys").showModal(),
  Escape: clearFilters,
};

function storedTheme() {
  try {
    const theme = localStorage.getItem("nginx-consul theme");
    return Object.hasOwn(THEMES, theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const theme = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  showTheme(theme);
  try {
    localStorage.setItem("nginx-consul theme", theme);
  } catch {
    // Then it holds until the page is closed.
  }
}

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const text = `Colours: ${THEMES[theme]}`;
  byId("theme").setAttribute("aria-label", text);
  byId("theme").title = `${text} (t)`;
}
