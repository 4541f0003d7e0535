// Requests the windows for the chart: those of the groups with the largest values. All groups are compared, not only
// those of windows that the page has already.

import { get, paths, together } from "./api.js";
import { step } from "./format.js";
import { UNORDERED } from "./functions.js";
import { keyOf } from "./store.js";

export const LINES = 8;
const COUNTED = 1_000, MOST = 10_000;

/** Return conditions on group columns as parameters. They have `__eq`, because a column can be called `limit`. */
export function conditions(values) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) =>
    (value === null ? [`${name}__isnull`, "true"] : [`${name}__eq`, String(value)])));
}

/** Whether the windows of a group can be combined, so that groups can be compared over the whole time. */
export const comparable = ({ window, dimensions }) => window.type !== "session" && dimensions.length > 0;

/**
 * Request {rows, ranked, groups, more, newest, closedUntil}.
 *
 * `ranked`: the keys of the shown groups, the largest first; null if the rows are simply the latest windows.
 * `groups`: the number of groups; `more`: whether there are more groups than that.
 * `newest`: the start of the newest window of any group.
 */
export async function leaders({ pipeline, aggregation, metric, span, filters, key }, signal) {
  const path = paths.aggregate(pipeline, aggregation.name);
  const ask = (parameters) => get(path, { parameters: { ...filters, metrics: metric, ...parameters }, key, signal });
  const latest = { order: "-window_start", limit: span };
  if (!comparable(aggregation)) {
    const answer = await ask(latest);
    return together([answer], { rows: answer.body.data, ranked: null, groups: 0, more: false, newest: -Infinity,
      closedUntil: answer.body.closed_until });
  }
  const { dimensions, measures, window } = aggregation;
  const newest = await ask({ ...latest, limit: 1 });
  const closedUntil = newest.body.closed_until;
  if (!newest.body.data.length) {
    return together([newest], { rows: [], ranked: [], groups: 0, more: false, newest: -Infinity, closedUntil });
  }
  const last = Date.parse(newest.body.data[0].window_start);
  const from = new Date(last - (span - 1) * step(window)).toISOString();
  // The API cannot order by values of sketches, so all groups are requested.
  const ordered = !UNORDERED.has(measures.find(({ name }) => name === metric).function);
  const ranking = await ask({ from, granularity: "all", ...(ordered ? { order: `-${metric}`, limit: COUNTED } : { limit: MOST }) });
  const value = (row) => Number(row[metric] ?? -Infinity);
  const ranked = ranking.body.data.toSorted((a, b) => value(b) - value(a));
  const chosen = ranked.slice(0, LINES);
  const answers = await Promise.all(chosen.map((row) => {
    const group = Object.fromEntries(dimensions.map(({ name }) => [name, row[name]]));
    return ask({ ...conditions(group), ...latest, from });
  }));
  return together([newest, ranking, ...answers], { rows: answers.flatMap(({ body }) => body.data),
    ranked: chosen.map((row) => keyOf(row, dimensions)), groups: ranked.length, more: ranking.body.truncated, newest: last, closedUntil });
}
