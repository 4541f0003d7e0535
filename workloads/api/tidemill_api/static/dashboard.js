// The dashboard: the user's choices, and the requests that they need. The choices are stored in the page's URL.

import { ApiError, get, keys, paths } from "./api.js";
import { Chart } from "./chart.js";
import { Feed } from "./feed.js";
import * as format from "./format.js";
import { askKey, listPipelines, showKeys } from "./keyring.js";
import { element, showAnomalies, showDeadLetters, showFigures, showFilters } from "./panels.js";
import { View } from "./view.js";
import { tell } from "./words.js";

const LISTED = 8;
const FIGURES_MS = 2_000, LISTS_MS = 5_000, PIPELINES_MS = 15_000;
const $ = (id) => document.getElementById(id);

const chosen = { pipeline: "", aggregation: "", metric: "", span: "60", filters: {} };
const view = new View({ $, chart: new Chart($("chart")), onState: liveState });
const figures = new Feed(drawFigures, FIGURES_MS);
const anomalies = new Feed(drawAnomalies, LISTS_MS);
const deadLetters = new Feed(drawDeadLetters, LISTS_MS);
let description = null, shape = "", consumed = [], live = ["connecting", "connecting"], timer = 0;
for (const feed of [figures, anomalies, deadLetters, ...view.feeds]) feed.refused = refused;

function readAddress() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  Object.assign(chosen, { pipeline: "", aggregation: "", metric: "", span: "60", filters: {} });
  for (const [name, value] of parameters) {
    if (name in chosen && name !== "filters") chosen[name] = value;
    else if (name.startsWith("group.")) chosen.filters[name.slice(6)] = value;
  }
  $("span").value = chosen.span;
  if (!$("span").value) $("span").value = chosen.span = "60";
}

function writeAddress() {
  const { filters, ...rest } = chosen;
  const parameters = new URLSearchParams(rest);
  for (const [name, value] of Object.entries(filters)) if (value) parameters.set(`group.${name}`, value);
  history.replaceState(null, "", `#${parameters}`);
}

function say(text) {
  $("message").hidden = !text;
  $("message").textContent = text;
}

/** Show the state of the connection in a few words. Errors of the figures come before the state of the live changes. */
function connection() {
  const [state, text] = {
    stale: ["waiting", "stale"], unavailable: ["waiting", "stale"], unreachable: ["failed", "no answer"],
  }[figures.state] ?? live;
  $("connection").dataset.state = state;
  if ($("connection").textContent !== text) $("connection").textContent = text;
}

function liveState(state, text, code) {
  live = [state, state === "failed" ? "not connected" : text];
  connection();
  // 4400 means a wrong parameter. The panels show that error themselves.
  if (state === "failed" && code !== 4400) refused(new ApiError(code - 4000, code === 4404 ? "pipeline_not_found" : "", text));
}

/** Whether an error means that the pipeline cannot be queried with this key. If so, its data is removed from the page. */
function refused(error) {
  const gone = error.code === "pipeline_not_found";
  if (error.status !== 401 && error.status !== 403 && !gone) return false;
  const name = chosen.pipeline;
  if (gone) locked(`There is no pipeline ${name} here, or it requires a key.`);
  else if (error.status === 403) locked(`${name}: ${error.message}.`);
  else locked(keys.of(name) ? `${name} does not accept the key any more.` : `${name} requires a key.`);
  return true;
}

function locked(text) {
  description = null;
  for (const feed of [figures, anomalies, deadLetters, ...view.feeds]) feed.clear();
  stop();
  $("content").hidden = true;
  live = ["failed", "needs a key"];
  connection();
  askKey($, text);
}

function stop() {
  for (const feed of [figures, anomalies, deadLetters]) feed.stop();
  view.close();
  clearTimeout(timer);
}

function options(select, values, current) {
  const texts = JSON.stringify(values);
  if (select.dataset.values !== texts) select.replaceChildren(...values.map((value) => element("option", { value }, value)));
  select.dataset.values = texts;
  select.value = values.includes(current) ? current : values[0] ?? "";
  return select.value;
}

/** Request the list of pipelines, and show the chosen one. */
async function start() {
  stop();
  say("");
  live = ["connecting", "connecting"];
  connection();
  const again = () => (timer = setTimeout(start, LISTS_MS));
  let found;
  try {
    found = await listPipelines();
  } catch (error) {
    $("content").hidden = true;
    live = ["failed", "no answer"];
    connection();
    say(`The API does not answer (${error.message}). The page keeps trying.`);
    return again();
  }
  showKeys($, start);
  if (!found.names.length && !found.locked) {
    $("content").hidden = true;
    live = ["waiting", "nothing to show"];
    connection();
    say("There is no pipeline here yet. Apply an AnalyticsPipeline; it then appears on this page.");
    return again();
  }
  offer(found.names);
  if (!found.names.length) return locked("All pipelines here require a key.");
  chosen.pipeline ||= found.names[0];
  $("pipeline").value = chosen.pipeline;
  if (!found.names.includes(chosen.pipeline)) return refused(new ApiError(404, "pipeline_not_found", ""));
  choosePipeline();
}

function offer(names) {
  const list = $("pipeline");
  if (list.dataset.values === JSON.stringify(names)) return;
  list.dataset.values = JSON.stringify(names);
  list.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  list.value = chosen.pipeline;
}

/** Update the list of pipelines, which can change while the page is open. */
async function relist() {
  if (!document.hidden) await listPipelines().then(({ names }) => offer(names), () => {});
  setTimeout(relist, PIPELINES_MS);
}

function choosePipeline() {
  stop();
  say("");
  $("key-form").hidden = true;
  description = null;
  consumed = [];
  shape = "";
  const { pipeline } = chosen;
  const ask = (path, parameters = {}) => (signal) => get(path, { parameters, key: keys.of(pipeline), signal });
  document.title = `${pipeline} · Tidemill`;
  $("content").hidden = false;
  $("aggregates").hidden = true;
  figures.start(ask(paths.pipeline(pipeline)));
  anomalies.start(ask(paths.anomalies(pipeline), { limit: LISTED }));
  deadLetters.start(ask(paths.deadLetters(pipeline), { limit: LISTED }));
}

function drawFigures(feed) {
  const before = $("figures-state").dataset.state;
  const shown = tell($("figures-state"), feed);
  connection();
  // When the state of one panel changes, the others are likely to change too, so they are refreshed at once.
  if (description && before !== "loading" && before !== $("figures-state").dataset.state) {
    for (const other of [anomalies, deadLetters, ...view.feeds]) other.refresh();
  }
  $("figures").hidden = !shown;
  if (!shown) return $("figures").replaceChildren();
  description = feed.body;
  showFigures($("figures"), description, feed.state === "fresh" ? rate() : null);
  // If the pipeline was edited, names and types of columns may have changed.
  const now = JSON.stringify(description.aggregations.map(({ name, version, dimensions, measures, window }) =>
    ({ name, version, dimensions, measures, window })));
  if (now === shape) return;
  shape = now;
  anomalies.redraw();
  chooseAggregation();
}

/** Events per second. It is computed over several answers, because they come from a cache. */
function rate() {
  const now = { at: performance.now(), events: description.progress.consumed };
  if (consumed.length && now.events < consumed[0].events) consumed = [];
  consumed.push(now);
  if (consumed.length > 6) consumed.shift();
  const seconds = (now.at - consumed[0].at) / 1000;
  return seconds > 1 ? (now.events - consumed[0].events) / seconds : null;
}

const leftOut = ({ body }) => (body?.truncated ? [`The latest ${body.data.length}; there are older ones.`] : []);

function drawAnomalies(feed) {
  const found = feed.body?.data ?? [];
  const none = description && !description.anomalies.length ? "This pipeline has no anomaly rules." : "None found.";
  tell($("anomalies-state"), feed, { count: found.length, empty: none, notes: leftOut(feed) });
  showAnomalies($("anomalies"), found);
}

function drawDeadLetters(feed) {
  const found = feed.body?.data ?? [];
  tell($("dead-letters-state"), feed, { count: found.length, empty: "None: every event counts.", notes: leftOut(feed) });
  showDeadLetters($("dead-letters"), found);
}

function chooseAggregation() {
  view.close();
  const names = description.aggregations.map(({ name }) => name);
  const wished = chosen.aggregation;
  chosen.aggregation = options($("aggregation"), names, wished);
  const aggregation = description.aggregations.find(({ name }) => name === chosen.aggregation);
  $("aggregates").hidden = !aggregation;
  if (!aggregation) return say("This pipeline has no aggregation, so there is nothing to draw.");
  const numeric = aggregation.measures.filter(({ type }) => format.numeric(type)).map(({ name }) => name);
  const metric = chosen.metric;
  chosen.metric = options($("metric"), numeric, metric);
  if (wished && wished !== chosen.aggregation) say(`There is no aggregation ${wished}; ${chosen.aggregation} is shown.`);
  else if (metric && metric !== chosen.metric && wished) {
    say(`${aggregation.name} has no numeric metric ${metric}${chosen.metric ? `; ${chosen.metric} is shown` : ""}.`);
  }
  const known = new Set(aggregation.dimensions.map(({ name }) => name));
  chosen.filters = Object.fromEntries(Object.entries(chosen.filters).filter(([name]) => known.has(name)));
  showFilters($("filters"), aggregation.dimensions, chosen.filters, (name, value) => {
    if ((chosen.filters[name] ?? "") === value) return;
    chosen.filters[name] = value;
    show(aggregation);
  });
  show(aggregation);
}

function show(aggregation) {
  writeAddress();
  view.open(chosen.pipeline, aggregation, chosen.filters);
  view.draw(chosen.metric, Number(chosen.span));
}

$("pipeline").addEventListener("change", () => {
  Object.assign(chosen, { pipeline: $("pipeline").value, aggregation: "", metric: "", filters: {} });
  choosePipeline();
});
$("aggregation").addEventListener("change", () => {
  say("");
  Object.assign(chosen, { aggregation: $("aggregation").value, metric: "" });
  chooseAggregation();
});
for (const name of ["metric", "span"]) {
  $(name).addEventListener("change", () => {
    say("");
    chosen[name] = $(name).value;
    writeAddress();
    view.draw(chosen.metric, Number(chosen.span));
  });
}
addEventListener("hashchange", () => {
  readAddress();
  start();
});
readAddress();
start();
setTimeout(relist, PIPELINES_MS);
