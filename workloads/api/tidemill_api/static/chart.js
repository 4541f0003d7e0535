// A chart as SVG. Each group has a line over the starts of its windows, or a bar from start to end for each session.
// Values of open windows, which may still change, are dashed and hollow.

import { clock, day, number, short, time } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 12, right: 16, bottom: 40, left: 58 };
const MINUTE = 60_000, HOUR = 3_600_000, DAY = 86_400_000;
const STEPS = [1_000, 5_000, 15_000, 30_000, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR,
  2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 365 * DAY];

function draw(name, attributes, parent, text = undefined) {
  const node = document.createElementNS(SVG, name);
  for (const [attribute, content] of Object.entries(attributes)) node.setAttribute(attribute, content);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

/** Return round values within [low, high], and the step between them. */
export function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  const found = [];
  for (let n = Math.ceil(low / step); n <= Math.floor(high / step + 1e-9); n += 1) found.push(n * step);
  return { found, step };
}

/** Return the range of the vertical axis. It includes zero, unless all values are far from zero. */
export function range(values) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && low < high * 0.7) low = 0;
  if (high < 0 && high > low * 0.7) high = 0;
  if (low === high) [low, high] = low === 0 ? [0, 1] : [Math.min(0, low * 2), Math.max(0, high * 2)];
  const { step } = ticks(low, high, 4);
  return [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
}

export class Chart {
  constructor(host) {
    this.host = host;
    this.at = null;
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("aria-hidden", "true");
    host.replaceChildren(this.svg, this.tip);
    new ResizeObserver(() => this.render()).observe(host);
    host.addEventListener("pointermove", (event) => this.#point(event));
    host.addEventListener("pointerleave", () => this.#mark(null));
    host.addEventListener("blur", () => this.#mark(null));
    host.addEventListener("keydown", (event) => this.#step(event));
  }

  /**
   * series: [{label, color, points: [{start, end, value, closed}]}], with points in the order of time; step: ms from the
   * start of a window to that of the next, null for sessions; newest: a time that the axis includes at least.
   */
  show({ series, step, name, newest = -Infinity }) {
    Object.assign(this, { series, step, name, newest });
    this.host.setAttribute("aria-label", series.length ? `Chart of ${name}; use the arrow keys to go through the windows` : "Chart, empty");
    this.starts = [...new Set(series.flatMap(({ points }) => points.map((point) => point.start)))].sort((a, b) => a - b);
    if (this.at !== null && !this.starts.includes(this.at)) this.at = null;
    this.render();
  }

  render() {
    this.svg.replaceChildren();
    this.cursor = null;
    if (!this.series?.length || !this.host.clientWidth) {
      this.tip.hidden = true;
      return;
    }
    const width = this.host.clientWidth, height = this.host.clientHeight;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const values = this.series.flatMap(({ points }) => points.map((point) => point.value));
    const [low, high] = range(values);
    const ends = this.step === null ? this.series.flatMap(({ points }) => points.map((point) => point.end)) : [];
    const first = this.starts[0], last = Math.max(this.starts.at(-1), this.newest, first + (this.step ?? 1_000), ...ends);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    this.x = (at) => MARGIN.left + ((at - first) / (last - first)) * inner.width;
    this.y = (value) => MARGIN.top + (1 - (value - low) / (high - low)) * inner.height;
    this.#axes(width, height, low, high, first, last);
    this.series.forEach((line) => (this.step === null ? this.#bars(line) : this.#line(line)));
    this.cursor = draw("g", { class: "cursor" }, this.svg);
    this.#mark(this.at);
  }

  #axes(width, height, low, high, first, last) {
    const axes = draw("g", { class: "axes" }, this.svg);
    for (const value of ticks(low, high, 4).found) {
      const y = this.y(value);
      draw("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y, class: value === 0 ? "zero" : "grid" }, axes);
      draw("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, axes, short(value));
    }
    const room = Math.max(2, Math.floor((width - MARGIN.left) / 90));
    const step = STEPS.find((candidate) => (last - first) / candidate <= room) ?? 365 * DAY;
    let named = "";
    for (let at = Math.ceil(first / step) * step; at <= last; at += step) {
      const x = this.x(at);
      draw("line", { x1: x, x2: x, y1: height - MARGIN.bottom, y2: height - MARGIN.bottom + 5, class: "tick" }, axes);
      const anchor = x > width - 40 ? "end" : "middle";
      if (step < DAY) draw("text", { x, y: height - MARGIN.bottom + 18, "text-anchor": anchor }, axes, clock(at));
      if (day(at) !== named) {
        const below = step < DAY ? 33 : 18;
        draw("text", { x, y: height - MARGIN.bottom + below, "text-anchor": anchor, class: "day" }, axes, day(at));
        named = day(at);
      }
    }
  }

  #line({ points, color }) {
    const layer = draw("g", { class: `line ${color}` }, this.svg);
    const paths = { closed: "", open: "" };
    points.forEach((point, index) => {
      const before = points[index - 1];
      // A window without events is absent. No line is drawn over it, because it has no value.
      if (!before || point.start - before.start > this.step * 1.5) return;
      const part = `M${this.x(before.start)} ${this.y(before.value)}L${this.x(point.start)} ${this.y(point.value)}`;
      paths[point.closed && before.closed ? "closed" : "open"] += part;
    });
    for (const [kind, path] of Object.entries(paths)) if (path) draw("path", { d: path, class: kind }, layer);
    const sparse = points.length <= 40;
    points.forEach((point, index) => {
      const alone = (points[index - 1]?.start ?? -Infinity) < point.start - this.step * 1.5
        && (points[index + 1]?.start ?? Infinity) > point.start + this.step * 1.5;
      if (!point.closed || sparse || alone) {
        draw("circle", { cx: this.x(point.start), cy: this.y(point.value), r: 3, class: point.closed ? "closed" : "open" }, layer);
      }
    });
  }

  #bars({ points, color }) {
    const layer = draw("g", { class: `line ${color}` }, this.svg);
    for (const { start, end, value, closed } of points) {
      const kind = closed ? "closed" : "open", y = this.y(value);
      draw("path", { d: `M${this.x(start)} ${y}L${this.x(end)} ${y}`, class: kind }, layer);
      draw("circle", { cx: this.x(start), cy: y, r: 3, class: kind }, layer);
    }
  }

  #point(event) {
    if (!this.starts?.length) return;
    const x = event.clientX - this.host.getBoundingClientRect().left;
    this.#mark(this.starts.reduce((best, at) => (Math.abs(this.x(at) - x) < Math.abs(this.x(best) - x) ? at : best)));
  }

  #step(event) {
    if (!this.starts?.length || !["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(event.key)) return;
    event.preventDefault();
    const last = this.starts.length - 1;
    const now = this.at === null ? last + (event.key === "ArrowLeft" ? 1 : 0) : this.starts.indexOf(this.at);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    this.#mark(event.key === "Escape" ? null : this.starts[Math.max(0, Math.min(last, next))]);
  }

  /** Show the values of the windows that start at a time; null: hide them. */
  #mark(at) {
    this.at = at;
    this.cursor?.replaceChildren();
    this.tip.hidden = at === null || !this.cursor;
    if (this.tip.hidden) return;
    const x = this.x(at), height = this.host.clientHeight;
    draw("line", { x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom }, this.cursor);
    const here = this.series.map(({ label, color, points }) => ({ label, color, point: points.find((p) => p.start === at) }))
      .filter(({ point }) => point).sort((a, b) => b.point.value - a.point.value);
    const title = document.createElement("strong");
    title.textContent = time(at);
    const rows = here.map(({ label, color, point }) => {
      const row = document.createElement("span");
      row.className = `tip-row ${color}`;
      const name = document.createElement("span"), shown = document.createElement("b");
      name.textContent = label;
      shown.textContent = number(point.value) + (point.closed ? "" : " …");
      row.append(name, shown);
      draw("circle", { cx: x, cy: this.y(point.value), r: 4.5, class: `spot ${color}` }, this.cursor);
      return row;
    });
    this.tip.replaceChildren(title, ...rows);
    const right = x > this.host.clientWidth / 2;
    this.tip.style.left = right ? "" : `${x + 14}px`;
    this.tip.style.right = right ? `${this.host.clientWidth - x + 14}px` : "";
    this.host.setAttribute("aria-label", `${this.name} at ${time(at)}: `
      + here.map(({ label, point }) => `${label} ${number(point.value)}`).join(", "));
  }
}
