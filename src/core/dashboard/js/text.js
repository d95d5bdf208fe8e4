// Text and numbers, as the page shows them. Whoever may register a service chooses its names and
// tags: they only ever become text nodes, and characters that can't be seen are written out.

const UNSEEN = /[\p{C}\p{Zl}\p{Zp}]/gu;
const SHORT = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0" };

/** The text in one line; control characters, changes of direction and the like stand as `\u{202e}`. */
function printable(text) {
  return String(text).replace(UNSEEN, (c) => SHORT[c] ?? `\\u{${c.codePointAt(0).toString(16)}}`);
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** 1,234 up to a million, then 1.2 M. */
function count(n) {
  if (n < 1e6) return whole.format(n);
  return n < 1e9 ? `${tenth.format(n / 1e6)} M` : `${tenth.format(n / 1e9)} G`;
}

/** Requests per second: as many digits as matter; `null`: not known yet. */
function rate(n) {
  if (n === null) return "–";
  if (n >= 10_000) return `${tenth.format(n / 1000)}k`;
  if (n === 0) return "0";
  return n < 10 ? tenth.format(n) : whole.format(n);
}

/** A weight in effect, which slow start may make any part of a whole. */
const weight = (n) => (Number.isInteger(n) ? count(n) : tenth.format(n));

function percent(share) {
  const value = share * 100;
  if (value > 0 && value < 0.1) return "<0.1%";
  return value > 0 && value < 10 ? `${tenth.format(value)}%` : `${whole.format(value)}%`;
}

/** How long, in the unit that a reader would choose. */
function span(seconds) {
  if (seconds < 10) return `${tenth.format(seconds)} s`;
  if (seconds < 120) return `${whole.format(seconds)} s`;
  if (seconds < 7200) return `${whole.format(seconds / 60)} min`;
  if (seconds < 172_800) return `${whole.format(seconds / 3600)} h`;
  return `${whole.format(seconds / 86_400)} days`;
}

const ago = (seconds) => (seconds === null || seconds === undefined ? "never" : `${span(seconds)} ago`);

function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1 << 20) return `${whole.format(n / 1024)} KiB`;
  const mib = n / (1 << 20);
  return `${mib < 100 ? tenth.format(mib) : whole.format(mib)} MiB`;
}

const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

/** `1 peer`, `3 peers`. */
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/** `a`, `a and b`, `a, b and c`. */
function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** A sentence out of a text that may or may not end like one. */
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
