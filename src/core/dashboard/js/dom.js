// Making and changing elements. Only what differs is written, so that a refresh of unchanged data
// costs no layout.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element; strings become text nodes, never markup. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.shown !== text) {
    element.shown = text;
    element.textContent = text;
  }
}

function setAttribute(element, name, value) {
  if (value === null || value === undefined) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, value);
  }
}

/** A property of the element's own style: the CSSOM, which the Content-Security-Policy lets pass. */
function setStyle(element, name, value) {
  const styles = (element.styles ??= {});
  if (styles[name] !== value) {
    styles[name] = value;
    element.style.setProperty(name, value);
  }
}

function setHidden(element, hidden) {
  if (element.hidden !== hidden) element.hidden = hidden;
}

/** Replaces the children, unless `mark` says that they are the same as last time. */
function setChildren(element, mark, children) {
  if (element.mark !== mark) {
    element.mark = mark;
    element.replaceChildren(...children());
  }
}

/** A bar whose parts are as long as their counts: `[[name, count], …]`. */
function makeBar(names) {
  const bar = make("div", "parts");
  const parts = new Map(names.map((name) => [name, make("i", `part is-${name}`)]));
  bar.append(...parts.values());
  return {
    bar,
    update(counts, label) {
      for (const [name, part] of parts) {
        const n = counts[name] ?? 0;
        setHidden(part, n === 0);
        setStyle(part, "flex-grow", String(n));
      }
      setAttribute(bar, "title", label);
    },
  };
}

/** A line over time: values from the left, `null` where nothing is known. */
function makeSpark(width, height, className) {
  const line = makeSvg("path", { class: "spark-line" });
  const area = makeSvg("path", { class: "spark-area" });
  const floor = makeSvg("path", { class: "spark-floor", d: `M0 ${height - 0.5}H${width}` });
  const svg = makeSvg(
    "svg",
    { class: `spark ${className}`, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    floor,
    area,
    line,
  );
  return {
    svg,
    update(values, room) {
      const known = values.filter((value) => value !== null);
      const top = Math.max(1, ...known);
      const step = width / (room - 1);
      const first = width - step * (values.length - 1);
      const points = [];
      values.forEach((value, at) => {
        if (value === null) return;
        const x = first + at * step;
        points.push(`${x.toFixed(1)} ${(height - 1.5 - (value / top) * (height - 3)).toFixed(1)}`);
        if (points.length === 1) points.x = x.toFixed(1);
      });
      const path = points.length > 1 ? `M${points.join("L")}` : "";
      setAttribute(line, "d", path);
      setAttribute(area, "d", path && `${path}L${width} ${height}L${points.x} ${height}Z`);
    },
  };
}
