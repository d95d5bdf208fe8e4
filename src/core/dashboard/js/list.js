// The list: as many rows in the document as the window shows, and some around them. Rows stand at
// computed places; those of a kind are equally high, but for services and their details, which are
// measured when they are shown.

/** Pixels beyond the window that have rows too. */
const MARGIN = 400;
const MEASURED = new Set(["service", "detail"]);

const list = {
  element: null,
  rows: [],
  at: new Map(),
  tops: new Float64Array(1),
  /** Row elements in the document, by the row's key. */
  live: new Map(),
  heights: new Map(),
  kindHeights: { service: 64, detail: 220, head: 30, peer: 44 },
  kindsSeen: new Set(),
  /** The row that the keyboard is at. */
  active: null,
  width: 0,
};

function startList(element) {
  list.element = element;
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (list.width !== element.clientWidth) forgetHeights();
      paint();
    });
  };
  addEventListener("scroll", later, { passive: true });
  addEventListener("resize", later);
}

function forgetHeights() {
  list.width = list.element.clientWidth;
  list.heights.clear();
  list.kindsSeen.clear();
  place();
}

/** Shows these rows. */
function showRows(rows) {
  list.rows = rows;
  list.at = new Map(rows.map((row, index) => [row.key, index]));
  place();
  paint();
}

function place() {
  const { rows } = list;
  const tops = new Float64Array(rows.length + 1);
  for (let at = 0; at < rows.length; at++) {
    const { kind, key } = rows[at];
    const height = (MEASURED.has(kind) && list.heights.get(key)) || list.kindHeights[kind];
    tops[at + 1] = tops[at] + height;
  }
  list.tops = tops;
  setStyle(list.element, "height", `${tops[rows.length]}px`);
}

/** The first row that ends below `y`. */
function rowAt(y) {
  let [low, high] = [0, list.rows.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list.tops[middle + 1] > y) high = middle;
    else low = middle + 1;
  }
  return low;
}

function paint() {
  // A new height moves what is below it: once more, with the heights known by then.
  for (let turn = 0; turn < 3 && paintOnce(); turn++) place();
}

/** Returns whether a height was another than thought. */
function paintOnce() {
  const { rows, tops, live, element } = list;
  const start = -element.getBoundingClientRect().top;
  const [from, to] = [start - MARGIN, start + innerHeight + MARGIN];
  const wanted = new Set();
  for (let at = rowAt(from); at < rows.length && tops[at] < to; at++) wanted.add(at);
  // The keyboard's row keeps its element, and with it the focus.
  const active = list.at.get(list.active);
  if (active !== undefined) wanted.add(active);
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  const shown = [...wanted].sort((a, b) => a - b);
  const keys = new Set(shown.map((at) => rows[at].key));
  for (const [key, node] of live) {
    if (keys.has(key)) continue;
    node.element.remove();
    live.delete(key);
  }
  let next = element.firstElementChild;
  for (const at of shown) {
    const row = rows[at];
    let node = live.get(row.key);
    if (!node) {
      node = BUILD[row.kind](row);
      node.element.dataset.key = row.key;
      live.set(row.key, node);
    }
    node.row = row;
    node.update(row);
    setStyle(node.element, "transform", `translateY(${tops[at]}px)`);
    setAttribute(node.element, "aria-rowindex", at + 1);
    if (node.element.hasAttribute("tabindex")) node.element.tabIndex = row.key === list.active ? 0 : -1;
    if (node.element === next) next = next.nextElementSibling;
    else element.insertBefore(node.element, next);
  }
  setAttribute(element, "aria-rowcount", rows.length);
  element.tabIndex = active === undefined ? 0 : -1;
  if (focused && document.activeElement !== focused && focused.isConnected) focused.focus({ preventScroll: true });
  return measure(shown);
}

function measure(shown) {
  let changed = false;
  for (const at of shown) {
    const { kind, key } = list.rows[at];
    const height = list.live.get(key).element.offsetHeight;
    if (MEASURED.has(kind)) {
      changed ||= (list.heights.get(key) ?? list.kindHeights[kind]) !== height;
      list.heights.set(key, height);
    }
    if (!list.kindsSeen.has(kind)) {
      list.kindsSeen.add(kind);
      changed ||= list.kindHeights[kind] !== height;
      list.kindHeights[kind] = height;
    }
  }
  return changed;
}

const canBeActive = (row) => row.kind === "service" || row.kind === "peer";

/** Moves the keyboard to a row, and the row into the window. */
function activate(at) {
  list.active = list.rows[at].key;
  const top = list.tops[at];
  const height = list.tops[at + 1] - top;
  const start = list.element.getBoundingClientRect().top;
  const head = byId("columns").getBoundingClientRect().bottom;
  const below = start + top + height - innerHeight + 12;
  const above = start + top - Math.max(head, 0) - 4;
  if (above < 0) scrollBy(0, above);
  else if (below > 0) scrollBy(0, below);
  paint();
  list.live.get(list.active).element.focus({ preventScroll: true });
}

/** Moves the keyboard on by `step` rows. */
function move(step) {
  const at = list.at.get(list.active);
  let next = at === undefined ? (step > 0 ? 0 : list.rows.length - 1) : at + step;
  while (list.rows[next] && !canBeActive(list.rows[next])) next += Math.sign(step);
  if (list.rows[next]) activate(next);
}
