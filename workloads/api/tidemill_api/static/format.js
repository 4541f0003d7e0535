// Formats values as texts: numbers, times, durations and groups.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? whole.format(value) : precise.format(value);
}

export const count = (n, thing) => `${number(n)} ${thing}${n === 1 ? "" : "s"}`;

export function short(value) {
  return Math.abs(value) >= 10_000 ? compact.format(value) : precise.format(value);
}

const iso = (ms) => new Date(ms).toISOString();

/** Format a time as `2013-01-01 05:00`, with seconds if they are not 0. */
export function time(ms) {
  const text = iso(ms);
  return `${text.slice(0, 10)} ${clock(ms)}`;
}

const DAY = 86_400_000;
const LENGTHS = {
  ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: DAY, w: 7 * DAY, mo: 31 * DAY, q: 92 * DAY, y: 366 * DAY,
};

/** Return the milliseconds of a length in the notation of specs, such as `5m`; of the longest month, quarter or year. */
export function milliseconds(text) {
  const [, amount, unit] = /^(\d+)(ms|s|m|h|d|w|mo|q|y)$/.exec(text);
  return Number(amount) * LENGTHS[unit];
}

const place = ({ zone }) => (zone ? ` in ${zone}` : "");

/** For each kind of window: its name in sentences, and the milliseconds from one start to the next; null: any number. */
const KINDS = {
  tumbling: { words: (window) => `windows of ${window.size}${place(window)}`, step: ({ size }) => milliseconds(size) },
  hopping: {
    words: (window) => `windows of ${window.size}, one every ${window.hop}${place(window)}`,
    step: ({ hop }) => milliseconds(hop),
  },
  session: { words: ({ gap }) => `sessions that end after ${gap} without events`, step: () => null },
};

/** Describe the windows of an aggregation. */
export const windows = (window) => KINDS[window.type].words(window);

/** Return the milliseconds from the start of one window to that of the next; null for sessions. */
export const step = (window) => KINDS[window.type].step(window);

/** Format an RFC 3339 time like `time`, without milliseconds. */
export const moment = (text) => time(Math.floor(Date.parse(text) / 1000) * 1000);

/** Format the time of day as `05:00`, with seconds if they are not 0. */
export function clock(ms) {
  const text = iso(ms);
  if (ms % 1000) return text.slice(11, 23);
  return ms % 60_000 ? text.slice(11, 19) : text.slice(11, 16);
}

export const day = (ms) => iso(ms).slice(0, 10);

const UNITS = [["y", 31_557_600], ["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];

/** Format a duration with its two largest units, such as `2 min 5 s`. */
export function duration(ms) {
  let seconds = Math.max(0, Math.round(ms / 1000));
  const parts = [];
  for (const [unit, length] of UNITS) {
    if (seconds >= length || (unit === "s" && !parts.length)) {
      parts.push(`${Math.floor(seconds / length)} ${unit}`);
      seconds %= length;
    } else if (parts.length) break;
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

const NUMERIC = new Set(["integer", "number", "decimal"]);

/** Whether values of a type are numbers. Decimals come as texts, which have all their digits. */
export const numeric = (type) => NUMERIC.has(type);

export function value(cell, type) {
  if (cell === null || cell === undefined) return "null";
  if (type === "timestamp") return time(Date.parse(cell));
  if (Array.isArray(cell)) return counted(cell);
  return typeof cell === "number" ? number(cell) : String(cell);
}

const LISTED = 5;

/** Format the list of a metric: values, or lower and upper bounds, with their counts. `≤` marks an upper bound. */
function counted(cell) {
  const texts = cell.slice(0, LISTED).map(({ count, error, ...what }) =>
    `${Object.values(what).map((part) => part ?? "…").join(" to ")}: ${error ? "≤ " : ""}${number(count)}`);
  const more = cell.length - texts.length;
  return (texts.join(", ") || "–") + (more ? ` and ${more} more` : "");
}

/** Format the values of a group as one text. */
export function group(row, dimensions) {
  if (!dimensions.length) return "all";
  // Numbers in groups are often codes or years, so they have no thousands separators.
  return dimensions.map(({ name, type }) => (typeof row[name] === "number" ? String(row[name]) : value(row[name], type)))
    .join(" · ");
}
