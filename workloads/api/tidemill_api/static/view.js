// The view of one aggregation: its chart and its table of windows. Each has its own feed, and live changes update both.

import { Live, get, keys, paths } from "./api.js";
import * as format from "./format.js";
import { LINES, comparable, conditions, leaders } from "./leaders.js";
import { element, showWindows, suggest } from "./panels.js";
import { Feed } from "./feed.js";
import { Store, keyOf } from "./store.js";
import { tell } from "./words.js";

const TABLE_ROWS = 60;
const NONE = "No windows yet. They appear as soon as events are counted.";
const LIVE_MS = 10_000, POLL_MS = 5_000, DRAW_MS = 250;

export class View {
  /** `$` finds an element by its id. `onState(state, text, code)` is called when the live connection changes. */
  constructor({ $, chart, onState }) {
    Object.assign(this, { $, chart, onState, liveState: "", drawing: 0, hidden: new Set(), colors: new Map() });
    const every = () => (this.liveState === "live" ? LIVE_MS : POLL_MS);
    this.charted = new Feed((feed) => this.#drawChart(feed), every);
    this.listed = new Feed((feed) => this.#drawTable(feed), every);
    this.feeds = [this.charted, this.listed];
  }

  /** Show an aggregation. `filters` are texts by column; the text `null` means no value. */
  open(pipeline, aggregation, filters) {
    this.close();
    this.pipeline = pipeline;
    this.aggregation = aggregation;
    const wanted = Object.entries(filters).filter(([, text]) => text);
    this.filters = wanted.map(([name, text]) => `${name} = ${text}`);
    this.conditions = conditions(Object.fromEntries(wanted.map(([name, text]) => [name, text === "null" ? null : text])));
    this.latest = new Store(aggregation);
    this.$("windows-title").textContent = aggregation.window.type === "session" ? "Latest sessions" : "Latest windows";
    this.lines = null;
    this.listed.start(async (signal) => {
      const parameters = { ...this.conditions, order: "-window_start", limit: TABLE_ROWS };
      const answer = await get(paths.aggregate(pipeline, aggregation.name), { parameters, key: keys.of(pipeline), signal });
      signal.throwIfAborted();
      this.latest.base(answer.body.data, answer.body.closed_until);
      return answer;
    });
    this.live = new Live(pipeline, { aggregations: aggregation.name, ...this.conditions },
      { state: (...state) => this.#connected(...state), message: (message) => this.#take(message) });
  }

  /** Draw a metric over the latest `span` windows. */
  draw(metric, span) {
    const { pipeline, aggregation } = this;
    Object.assign(this, { metric, span, hidden: new Set(), colors: new Map() });
    const title = metric ? `${metric} in ${format.windows(aggregation.window)}` : "No numeric metric";
    this.$("chart-title").textContent = title;
    let ranked = null;
    const chosen = (row) => ranked === null || ranked.includes(keyOf(row, aggregation.dimensions));
    const store = (this.lines = new Store(aggregation, chosen));
    this.charted.stop();
    if (!metric) {
      this.chart.show({ series: [], step: null, name: "" });
      this.#legend([]);
      const empty = "This aggregation has no numeric metric. Its windows are in the table.";
      tell(this.$("chart-state"), { state: "fresh", body: null }, { count: 0, empty });
      return;
    }
    this.charted.start(async (signal) => {
      const question = { pipeline, aggregation, metric, span, filters: this.conditions, key: keys.of(pipeline) };
      const answer = await leaders(question, signal);
      signal.throwIfAborted();
      ranked = answer.body.ranked;
      store.base(answer.body.rows, answer.body.closedUntil);
      return answer;
    });
  }

  refresh() {
    for (const feed of this.feeds) feed.refresh();
  }

  close() {
    this.live?.close();
    this.live = null;
    for (const feed of this.feeds) feed.stop();
    clearTimeout(this.drawing);
    this.drawing = 0;
  }

  #connected(state, text, code) {
    this.liveState = state;
    this.onState(state, text, code);
  }

  #take(message) {
    for (const store of [this.latest, this.lines]) {
      if (message.type === "progress") store?.close(message.closed_until[this.aggregation.name]);
      else store?.take(message);
    }
    if (message.type === "reset") this.refresh();
    // When the first windows appear, the largest groups are requested at once.
    else if (message.type === "upsert" && !this.lines?.rows.size && !this.charted.turn) this.charted.refresh();
    this.drawing ||= setTimeout(() => {
      this.drawing = 0;
      for (const feed of this.feeds) feed.redraw();
    }, DRAW_MS);
  }

  #drawChart(feed) {
    if (!this.aggregation) return;
    const { aggregation, metric } = this;
    const entries = feed.body ? this.#spanned() : [];
    const lines = this.#group(entries, feed.body?.ranked);
    const shown = lines.slice(0, LINES);
    const filters = entries.length ? [] : this.filters;
    const empty = entries.length ? `No window here has a value of ${metric}.` : NONE;
    tell(this.$("chart-state"), feed, { count: lines.length, empty, filters, notes: this.#leftOut(feed.body, entries, lines) });
    this.#paint(shown);
    this.chart.show({ series: shown.filter(({ key }) => !this.hidden.has(key)), step: format.step(aggregation.window),
      name: metric, newest: feed.body?.newest ?? -Infinity });
    this.#legend(shown);
  }

  #spanned() {
    const entries = this.lines.entries();
    if (!comparable(this.aggregation)) return entries.slice(-this.span);
    const first = (entries.at(-1)?.start ?? 0) - (this.span - 1) * format.step(this.aggregation.window);
    return entries.filter(({ start }) => start >= first);
  }

  #leftOut(body, entries, lines) {
    if (!body) return [];
    const of = (groups, more, where) =>
      (groups > LINES ? [`The ${LINES} of ${more}${format.number(groups)} groups with the largest ${this.metric} ${where}.`] : []);
    if (body.ranked === null) return of(lines.length, "", `in one of the latest ${entries.length} sessions`);
    return of(body.groups, body.more ? "more than " : "", "over this time");
  }

  /** Return the lines of the groups, the largest first. */
  #group(entries, ranked) {
    const { dimensions } = this.aggregation;
    const lines = new Map();
    for (const entry of entries) {
      const text = entry.row[this.metric];
      if (text === null || text === undefined) continue;
      const value = Number(text), key = entry.group;
      if (!lines.has(key)) lines.set(key, { key, label: format.group(entry.row, dimensions), points: [], largest: -Infinity });
      const line = lines.get(key);
      line.points.push({ start: entry.start, end: entry.end, value, closed: this.lines.closed(entry) });
      line.largest = Math.max(line.largest, value);
    }
    const rank = ranked ? ({ key }) => ranked.indexOf(key) : ({ largest }) => -largest;
    return [...lines.values()].sort((a, b) => rank(a) - rank(b) || a.label.localeCompare(b.label));
  }

  /** Assign colours. A group keeps its colour while it is shown, even if its rank changes. */
  #paint(lines) {
    const shown = new Set(lines.map(({ key }) => key));
    for (const key of [...this.colors.keys()]) if (!shown.has(key)) this.colors.delete(key);
    const used = new Set(this.colors.values());
    const free = Array.from({ length: LINES }, (_, index) => `c${index + 1}`).filter((color) => !used.has(color));
    for (const line of lines) {
      if (!this.colors.has(line.key)) this.colors.set(line.key, free.shift());
      line.color = this.colors.get(line.key);
    }
  }

  #legend(lines) {
    const list = this.$("legend");
    const names = JSON.stringify(lines.map(({ key, color }) => [key, color]));
    if (list.dataset.names === names) return;
    list.dataset.names = names;
    list.replaceChildren(...lines.map(({ key, label, color }) => {
      const button = element("button", { type: "button", class: color, "aria-pressed": String(!this.hidden.has(key)) }, label);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(key)) this.hidden.add(key);
        button.setAttribute("aria-pressed", String(!this.hidden.has(key)));
        this.charted.redraw();
      });
      return element("li", {}, button);
    }));
  }

  #drawTable(feed) {
    if (!this.aggregation) return;
    const entries = feed.body ? this.latest.entries().reverse() : [];
    const shown = entries.slice(0, TABLE_ROWS);
    const more = feed.body && (feed.body.truncated || entries.length > shown.length);
    tell(this.$("windows-state"), feed, {
      count: shown.length, filters: this.filters, empty: NONE,
      notes: more ? [`The latest ${shown.length}; there are older ones.`] : [],
    });
    showWindows(this.$("windows"), this.latest, this.aggregation, shown);
    suggest(this.aggregation.dimensions, this.latest);
  }
}
