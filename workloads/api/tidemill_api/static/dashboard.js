// The dashboard: what is chosen, what is asked for, and when it is drawn anew. What is chosen is kept in the address.

import { ApiError, Live, get, key, paths } from "./api.js";
import { Chart } from "./chart.js";
import * as format from "./format.js";
import { element, showAnomalies, showDeadLetters, showFigures, showFilters, showWindows, suggest } from "./panels.js";
import { Store } from "./store.js";

const LINES = 8, LISTED = 8;
const FIGURES_MS = 2_000, LISTS_MS = 5_000, DRAW_MS = 250;
const KEPT = "It is kept in this tab only, and forgotten when the tab is closed.";
const $ = (id) => document.getElementById(id);
const chart = new Chart($("chart"));

const chosen = { pipeline: "", aggregation: "", metric: "", span: "60", filters: {} };
let description = null, aggregation = null, store = null, live = null;
let hidden = new Set(), colors = new Map(), consumed = null, timers = [], drawing = 0;

function readAddress() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  chosen.filters = {};
  for (const [name, value] of parameters) {
    if (name in chosen && name !== "filters") chosen[name] = value;
    else if (name.startsWith("group.")) chosen.filters[name.slice(6)] = value;
  }
}

function writeAddress() {
  const { filters, ...rest } = chosen;
  const parameters = new URLSearchParams(rest);
  for (const [name, value] of Object.entries(filters)) if (value) parameters.set(`group.${name}`, value);
  history.replaceState(null, "", `#${parameters}`);
}

function connection(state, text) {
  $("connection").dataset.state = state;
  if ($("connection").textContent !== text) $("connection").textContent = text;
}

function say(text) {
  $("message").hidden = !text;
  $("message").textContent = text;
}

function askKey(text) {
  stop();
  $("content").hidden = true;
  $("key-form").hidden = false;
  $("key-text").textContent = text;
  connection("failed", "needs a key");
  $("key").focus();
}

function refused(error) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401 || error.status === 403) {
    askKey(error.status === 403 ? error.message : key.get() ? "That key is not accepted here. Is it whole, and of this pipeline?" : KEPT);
    return true;
  }
  return false;
}

function stop() {
  live?.close();
  live = null;
  timers.forEach(clearTimeout);
  timers = [];
}

/** Do something now and every so often, never twice at a time; a failure is told and tried again. */
function repeat(work, every) {
  const pipeline = chosen.pipeline;
  const slot = timers.length;
  timers.push(0);
  const turn = async () => {
    try {
      if (!document.hidden) await work();
    } catch (error) {
      if (refused(error)) return;
      if (error.status !== 0 && error.status < 500) say(error.message);
    }
    if (chosen.pipeline === pipeline && timers.length) timers[slot] = setTimeout(turn, every);
  };
  timers[slot] = setTimeout(turn, every);
}

function options(select, values, current) {
  select.replaceChildren(...values.map(([value, text]) => element("option", { value }, text)));
  const found = values.some(([value]) => value === current);
  select.value = found ? current : values[0]?.[0] ?? "";
  return select.value;
}

async function start() {
  stop();
  say("");
  $("key-form").hidden = true;
  connection("connecting", "connecting");
  try {
    const { pipelines } = await get(paths.pipelines());
    if (!pipelines.length) {
      $("content").hidden = true;
      connection("waiting", "nothing to show");
      say("No pipeline is served here yet. Apply an AnalyticsPipeline; it appears by itself.");
      timers.push(setTimeout(start, LISTS_MS));
      return;
    }
    chosen.pipeline = options($("pipeline"), pipelines.map(({ name }) => [name, name]), chosen.pipeline);
    await choosePipeline();
  } catch (error) {
    if (refused(error)) return;
    connection("failed", "no answer");
    say(`${error.message} Trying again.`);
    timers.push(setTimeout(start, LISTS_MS));
  }
}

async function choosePipeline() {
  stop();
  say("");
  consumed = null;
  description = await get(paths.pipeline(chosen.pipeline));
  document.title = `${chosen.pipeline} · Tidemill`;
  $("content").hidden = false;
  const names = description.aggregations.map(({ name }) => [name, name]);
  chosen.aggregation = options($("aggregation"), names, chosen.aggregation);
  figures();
  repeat(async () => {
    description = await get(paths.pipeline(chosen.pipeline));
    figures();
  }, FIGURES_MS);
  repeat(lists, LISTS_MS);
  chooseAggregation();
  await lists();
}

function figures() {
  const now = { at: performance.now(), events: description.progress.consumed };
  // Over several looks, as answers come from a cache.
  if (consumed === null || now.events < consumed[0].events) consumed = [now];
  consumed.push(now);
  if (consumed.length > 6) consumed.shift();
  const seconds = (now.at - consumed[0].at) / 1000;
  showFigures($("figures"), description, seconds > 1 ? (now.events - consumed[0].events) / seconds : null);
}

async function lists() {
  const [anomalies, letters] = await Promise.all([
    get(paths.anomalies(chosen.pipeline), { limit: LISTED }),
    get(paths.deadLetters(chosen.pipeline), { limit: LISTED }),
  ]);
  showAnomalies($("anomalies"), $("anomalies-note"), anomalies, description.counts.anomalies);
  showDeadLetters($("dead-letters"), $("dead-letters-note"), letters, description.counts.dead_letters);
}

function chooseAggregation() {
  aggregation = description.aggregations.find(({ name }) => name === chosen.aggregation);
  if (!aggregation) {
    say("This pipeline has no aggregation that can be shown.");
    return;
  }
  const numeric = aggregation.measures.filter(({ type }) => type === "integer" || type === "number");
  chosen.metric = options($("metric"), numeric.map(({ name }) => [name, name]), chosen.metric);
  const known = new Set(aggregation.dimensions.map(({ name }) => name));
  chosen.filters = Object.fromEntries(Object.entries(chosen.filters).filter(([name]) => known.has(name)));
  showFilters($("filters"), aggregation.dimensions, chosen.filters, (name, value) => {
    if ((chosen.filters[name] ?? "") === value) return;
    chosen.filters[name] = value;
    connect();
  });
  connect();
}

function connect() {
  live?.close();
  say("");
  writeAddress();
  store = new Store(aggregation);
  hidden = new Set();
  colors = new Map();
  const parameters = { aggregations: aggregation.name };
  for (const [name, value] of Object.entries(chosen.filters)) {
    if (value === "null") parameters[`${name}__isnull`] = "true";
    else if (value) parameters[name] = value;
  }
  live = new Live(chosen.pipeline, parameters, { state: connectionState, message: take });
  draw();
}

function connectionState(state, text, code) {
  connection(state, state === "failed" ? "not connected" : text);
  if (state !== "failed") return;
  if (code === 4401 || code === 4403) refused(new ApiError(code - 4000, "", text));
  else if (code === 4404) {
    say(`${text}.`);
    timers.push(setTimeout(start, LISTS_MS));
  } else say(text);
}

function take(message) {
  if (message.type === "hello") {
    const now = message.aggregations[0];
    // Another definition: names and types may have changed.
    if (now && JSON.stringify(now.measures) !== JSON.stringify(aggregation.measures)) choosePipeline().catch(refused);
  } else if (message.type === "progress") store.progress(message.closed_until[aggregation.name]);
  else store.take(message);
  drawing ||= setTimeout(draw, DRAW_MS);
}

function draw() {
  clearTimeout(drawing);
  drawing = 0;
  const entries = store.latest(Number(chosen.span));
  const lines = group(entries);
  const shown = lines.slice(0, LINES);
  const window = aggregation.window;
  $("chart-title").textContent = chosen.metric ? `${chosen.metric} in ${window.type} windows of ${window.size}` : "No metric that can be drawn";
  paint(shown);
  chart.show({ series: shown.filter(({ label }) => !hidden.has(label)), step: milliseconds(window.hop ?? window.size), name: chosen.metric });
  legend(shown);
  const note = [];
  if (!entries.length) note.push("No windows yet: they appear as soon as events are counted.");
  else if (!lines.length) note.push("No values of this metric.");
  if (lines.length > shown.length) note.push(`The ${shown.length} largest of ${lines.length} groups.`);
  $("chart-note").textContent = note.join(" ");
  showWindows($("windows"), $("windows-note"), store, aggregation, entries);
  suggest(aggregation.dimensions, store);
}

/** Lines by group, the largest sum first. */
function group(entries) {
  const lines = new Map();
  for (const entry of entries) {
    const value = entry.row[chosen.metric];
    if (typeof value !== "number") continue;
    const label = format.group(entry.row, aggregation.dimensions);
    if (!lines.has(label)) lines.set(label, { label, points: [], sum: 0 });
    const line = lines.get(label);
    line.points.push({ start: entry.start, value, closed: store.closed(entry) });
    line.sum += Math.abs(value);
  }
  return [...lines.values()].sort((a, b) => b.sum - a.sum || a.label.localeCompare(b.label));
}

/** A group keeps its colour while it is shown, whatever its rank. */
function paint(lines) {
  const labels = new Set(lines.map(({ label }) => label));
  for (const label of [...colors.keys()]) if (!labels.has(label)) colors.delete(label);
  const used = new Set(colors.values());
  const free = Array.from({ length: LINES }, (_, index) => `c${index + 1}`).filter((color) => !used.has(color));
  for (const line of lines) {
    if (!colors.has(line.label)) colors.set(line.label, free.shift());
    line.color = colors.get(line.label);
  }
}

function legend(lines) {
  const labels = lines.map(({ label }) => label).join("\n");
  const list = $("legend");
  if (list.dataset.labels !== labels) {
    list.dataset.labels = labels;
    list.replaceChildren(...lines.map(({ label, color }) => {
      const button = element("button", { type: "button", class: color, "aria-pressed": String(!hidden.has(label)) }, label);
      button.addEventListener("click", () => {
        if (!hidden.delete(label)) hidden.add(label);
        button.setAttribute("aria-pressed", String(!hidden.has(label)));
        draw();
      });
      return element("li", {}, button);
    }));
  }
}

function milliseconds(text) {
  const units = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 };
  let total = 0;
  for (const [, amount, unit] of text.matchAll(/([0-9.]+)(ms|s|m|h|d|w)/g)) total += Number(amount) * units[unit];
  return total || 60_000;
}

$("pipeline").addEventListener("change", () => {
  chosen.pipeline = $("pipeline").value;
  choosePipeline().catch((error) => refused(error) || say(error.message));
});
$("aggregation").addEventListener("change", () => {
  chosen.aggregation = $("aggregation").value;
  chooseAggregation();
});
for (const name of ["metric", "span"]) {
  $(name).addEventListener("change", () => {
    chosen[name] = $(name).value;
    writeAddress();
    colors = new Map();
    draw();
  });
}
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  start();
});
readAddress();
$("span").value = chosen.span;
if (!$("span").value) $("span").value = chosen.span = "60";
start();
