// The panels around the chart: figures, the table of windows, anomalies and dead letters.
// Data is only added as text nodes, never as HTML.

import * as format from "./format.js";

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [attribute, content] of Object.entries(attributes)) {
    if (content !== undefined) node.setAttribute(attribute, content);
  }
  node.append(...children);
  return node;
}

export function showFigures(host, description, rate) {
  const { progress, counts } = description;
  const watermark = description.watermark ? Date.parse(description.watermark) : null;
  const latest = Math.max(...progress.partitions.map((p) => (p.last_event_at ? Date.parse(p.last_event_at) : -Infinity)));
  const newest = Math.max(...progress.partitions.map((p) => (p.max_event_time ? Date.parse(p.max_event_time) : -Infinity)));
  const lost = progress.lost.length;
  const behind = watermark === null ? "no event yet" : `${format.duration(Date.now() - watermark)} behind the clock`;
  const lag = watermark === null || newest === -Infinity ? "–" : format.duration(newest - watermark);
  const figures = [
    ["Watermark", watermark === null ? "–" : format.moment(description.watermark), behind],
    ["Lag", lag, "newest event time to watermark"],
    ["Consumed", format.number(progress.consumed), rate === null ? format.count(progress.partitions.length, "partition")
      : `${format.short(Math.round(rate))} events/s`],
    ["Filtered out", format.number(progress.filtered), "by the transform"],
    ...(progress.duplicates ? [["Duplicates", format.number(progress.duplicates), "left out by their ids"]] : []),
    ["Dead letters", format.number(counts.dead_letters), lost ? `${format.count(lost, "range")} of offsets lost` : "events not counted",
      counts.dead_letters || lost ? "warn" : ""],
    ["Last event", latest === -Infinity ? "–" : `${format.duration(Date.now() - latest)} ago`, "when it was counted"],
  ];
  host.replaceChildren(...figures.map(([name, value, note, state]) =>
    element("div", { class: `figure ${state ?? ""}` }, element("dt", {}, name), element("dd", {}, value),
      element("dd", { class: "note" }, note))));
}

/** Show the table of windows, with `entries` of the store, the newest first. */
export function showWindows(table, store, aggregation, entries) {
  const { dimensions, measures, window } = aggregation;
  if (!entries.length) return table.replaceChildren();
  const shown = [...entries].sort((a, b) => b.start - a.start || compare(a, b, dimensions));
  const lasting = window.type === "session";
  const numeric = (type) => (format.numeric(type) ? "number" : "");
  const head = element("tr", {}, element("th", { scope: "col" }, lasting ? "Session start" : "Window start"),
    ...(lasting ? [element("th", { scope: "col" }, "Lasted")] : []),
    ...dimensions.map(({ name }) => element("th", { scope: "col" }, name)),
    ...measures.map(({ name, type }) => element("th", { scope: "col", class: numeric(type) }, name)),
    element("th", { scope: "col" }, "State"));
  const rows = shown.map((entry) => {
    const closed = store.closed(entry);
    return element("tr", {}, element("td", { class: "time" }, format.time(entry.start)),
      ...(lasting ? [element("td", {}, format.duration(entry.end - entry.start))] : []),
      ...dimensions.map(({ name, type }) => cell(entry.row[name], type, "group")),
      ...measures.map(({ name, type }) => cell(entry.row[name], type, numeric(type))),
      element("td", {}, element("span", { class: `tag ${closed ? "closed" : "open"}` }, closed ? "closed" : "open")));
  });
  table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function compare(a, b, dimensions) {
  return format.group(a.row, dimensions).localeCompare(format.group(b.row, dimensions), "en", { numeric: true });
}

function cell(content, type, kind) {
  const missing = content === null || content === undefined;
  const text = kind === "group" && typeof content === "number" ? String(content) : format.value(content, type);
  return element("td", { class: `${kind} ${missing ? "missing" : ""}`.trim() }, text);
}

export function showAnomalies(list, anomalies) {
  list.replaceChildren(...anomalies.map((found) => {
    const group = Object.entries(found.group).map(([name, content]) => `${name} ${content}`).join(", ");
    const bounds = found.lower === null || found.upper === null ? ""
      : `, expected ${format.number(found.lower)} to ${format.number(found.upper)}`;
    const where = found.offset === null ? found.aggregation : `partition ${found.partition}, offset ${found.offset}`;
    return element("li", {},
      element("p", { class: "line-one" }, element("strong", {}, found.anomaly),
        element("time", { datetime: found.window_start }, format.time(Date.parse(found.window_start)))),
      element("p", {}, `${found.metric} ${format.number(found.value)}${bounds}`),
      element("p", { class: "note" }, `${found.severity} · ${where}${group ? ` · ${group}` : ""} · score ${format.number(found.score)}`));
  }));
}

export function showDeadLetters(list, letters) {
  list.replaceChildren(...letters.map((letter) => {
    const where = `partition ${letter.partition}, offset ${letter.offset}`;
    const what = [letter.field, letter.detail].filter(Boolean).join(": ");
    return element("li", {},
      element("p", { class: "line-one" }, element("strong", {}, letter.reason.replaceAll("_", " ")),
        element("time", { datetime: letter.created_at }, format.moment(letter.created_at))),
      what ? element("p", {}, what) : "",
      letter.value ? element("code", {}, letter.value.slice(0, 200)) : "",
      element("p", { class: "note" }, letter.aggregation ? `${where} · ${letter.aggregation}` : where));
  }));
}

/** Show one input for each group column. `change(name, text)` is called when one was edited. */
export function showFilters(host, dimensions, chosen, change) {
  host.replaceChildren(...dimensions.map(({ name }) => {
    const id = `filter-${name}`;
    const input = element("input", { id, list: `${id}-values`, placeholder: "all", autocomplete: "off", spellcheck: "false" });
    input.value = chosen[name] ?? "";
    input.addEventListener("change", () => change(name, input.value.trim()));
    input.addEventListener("search", () => change(name, input.value.trim()));
    input.type = "search";
    return element("label", { class: "field", for: id }, element("span", {}, name), input,
      element("datalist", { id: `${id}-values` }));
  }));
}

export function suggest(dimensions, store) {
  for (const { name } of dimensions) {
    const list = document.getElementById(`filter-${name}-values`);
    const texts = store.values(name).map((content) => (content === null ? "null" : String(content)));
    if (list && list.childElementCount !== texts.length) list.replaceChildren(...texts.map((text) => element("option", { value: text })));
  }
}
