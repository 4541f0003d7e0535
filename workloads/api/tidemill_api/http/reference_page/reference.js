"use strict";
// Shows /openapi.json: all paths with their parameters, answers and schemas. A button sends a request to the service.

const VERBS = ["get", "post", "put", "patch", "delete"];

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Return an element for a text with `code` in backticks.
function prose(text) {
  const parts = String(text || "").trim().split("`");
  return make("span", { class: "prose" }, ...parts.map((part, n) => (n % 2 ? make("code", {}, part) : part)));
}

function resolved(root, schema) {
  if (!schema || !schema.$ref) return schema || {};
  return schema.$ref.slice(2).split("/").reduce((node, key) => (node || {})[key], root) || {};
}

function typeOf(root, schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map(String).join(" | ");
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(root, one)).join(" | ");
  if (schema.type === "array") return `list of ${typeOf(root, schema.items)}`;
  return [].concat(schema.type || "any").join(" | ") + (schema.format ? ` (${schema.format})` : "");
}

function schemaTable(root, schema, seen = []) {
  const found = resolved(root, schema);
  const rows = Object.entries(found.properties || {}).map(([name, one]) => {
    const inner = one.type === "array" ? one.items : one;
    const nested = inner && (inner.$ref ? !seen.includes(inner.$ref) : inner.properties);
    const note = one.description || resolved(root, inner).description || "";
    return make("tr", {}, make("td", {}, make("code", {}, name)), make("td", {}, typeOf(root, one)),
      make("td", {}, prose(note), nested ? make("details", {}, make("summary", {}, "members"),
        schemaTable(root, inner, [...seen, inner.$ref])) : null));
  });
  return rows.length ? make("table", {}, ...rows) : make("p", {}, prose(found.description || typeOf(root, schema)));
}

function parameterRows(root, operation, inputs) {
  return (operation.parameters || []).map((raw) => {
    const parameter = resolved(root, raw);
    const input = make("input", { "aria-label": parameter.name, placeholder: String(parameter.example || "") });
    inputs.push([parameter, input]);
    return make("tr", {}, make("td", {}, make("code", {}, parameter.name), parameter.required ? " *" : ""),
      make("td", {}, `${parameter.in}, ${typeOf(root, parameter.schema)}`),
      make("td", {}, prose(parameter.description)), make("td", {}, input));
  });
}

function answers(root, operation) {
  return Object.entries(operation.responses || {}).map(([status, response]) => {
    const content = Object.entries(resolved(root, response).content || {});
    return make("details", {}, make("summary", {}, make("code", {}, status), " ", prose(response.description)),
      ...content.map(([kind, one]) => [kind, one.schema || one.itemSchema]).map(([kind, schema]) => make("div", {},
        make("p", {}, make("code", {}, kind)), schema && schema.type !== "string" ? schemaTable(root, schema) : null)));
  });
}

async function ask(verb, path, inputs, body, output) {
  const headers = {};
  const query = new URLSearchParams();
  let target = path;
  for (const [parameter, input] of inputs) {
    if (input.value === "" && parameter.in !== "path") continue;
    if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "header") headers[parameter.name] = input.value;
    else if ((parameter.schema || {}).type === "object") {
      for (const [name, value] of new URLSearchParams(input.value)) query.append(name, value);
    } else query.append(parameter.name, input.value);
  }
  const key = document.getElementById("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  const url = query.size ? `${target}?${query}` : target;
  output.textContent = `${verb.toUpperCase()} ${url}\n…`;
  try {
    const request = { method: verb.toUpperCase(), headers };
    if (body) Object.assign(request, { body: body.value, headers: { ...headers, "Content-Type": "application/json" } });
    const response = await fetch(url, request);
    const text = await response.text();
    let shown = text.slice(0, 100000);
    try { shown = JSON.stringify(JSON.parse(text), null, 1).slice(0, 100000); } catch { /* not JSON: shown as it is */ }
    const head = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    output.textContent = `${verb.toUpperCase()} ${url}\n${response.status} ${response.statusText}\n${head}\n\n${shown}`;
  } catch (error) {
    output.textContent += `\n${error}`;
  }
}

function section(root, verb, path, operation) {
  const inputs = [];
  const rows = parameterRows(root, operation, inputs);
  const content = resolved(root, operation.requestBody || {}).content || {};
  const media = content["application/json"];
  const schema = media ? resolved(root, media.schema) : null;
  const body = media ? make("textarea", { "aria-label": "body" }, JSON.stringify(schema.example || {}, null, 1)) : null;
  const output = make("pre", { hidden: "" });
  const button = make("button", { type: "button" }, "Ask");
  button.addEventListener("click", () => { output.hidden = false; ask(verb, path, inputs, body, output); });
  return make("details", { class: "operation", id: operation.operationId || `${verb} ${path}` },
    make("summary", {}, make("span", { class: "method" }, verb.toUpperCase()),
      make("h2", {}, make("span", { class: "path" }, path), ` — ${operation.summary || ""}`)),
    make("div", {}, operation.description ? make("p", {}, prose(operation.description)) : null,
      rows.length ? make("h3", {}, "Parameters") : null, rows.length ? make("table", {}, ...rows) : null,
      body ? make("h3", {}, "Body") : null, media ? schemaTable(root, media.schema) : null, body,
      button, output, make("h3", {}, "Answers"), ...answers(root, operation)));
}

function open(id) {
  const found = id && document.getElementById(id);
  if (found) { found.open = true; found.scrollIntoView(); }
}

async function show() {
  const main = document.getElementById("paths");
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`/openapi.json: ${response.status}`);
  const root = await response.json();
  document.getElementById("about").textContent = `${root.info.version} — ${root.info.description || ""}`;
  main.replaceChildren();
  for (const [path, item] of Object.entries(root.paths)) {
    for (const verb of VERBS.filter((one) => item[one])) {
      const made = section(root, verb, path, item[verb]);
      main.append(made);
      const link = make("a", { href: `#${made.id}` }, make("span", { class: "method" }, verb.toUpperCase()), path);
      link.addEventListener("click", () => open(made.id));
      document.getElementById("contents").append(link);
    }
  }
  open(decodeURIComponent(location.hash.slice(1)));
}

show().catch((error) => { document.getElementById("paths").textContent = String(error); });
