// The keys of this tab: the pipelines that they open, and the form to enter and forget them.

import { get, keys, paths } from "./api.js";
import { element } from "./panels.js";

const ask = (key) => get(paths.pipelines(), { key });

/** Request {names, locked}: the pipelines that are open without a key or with a key of this tab, and whether others are not. */
export async function listPipelines() {
  const opens = new Map();
  let locked = false;
  for (const key of ["", ...keys.all()]) {
    try {
      const { body } = await ask(key);
      for (const { name } of body.pipelines) if (!opens.has(name)) opens.set(name, key);
    } catch (error) {
      if (error.status !== 401 && error.status !== 403) throw error;
      locked = true;
    }
  }
  keys.opens = opens;
  return { names: [...opens.keys()].sort(), locked };
}

/** Show the form, with a text that says why a key is required. */
export function askKey($, text) {
  $("key-form").hidden = false;
  $("key-title").textContent = text;
  $("key").focus();
}

/** Show the entered keys. `changed` is called after a key was added or forgotten. */
export function showKeys($, changed) {
  $("keys-button").onclick = () => {
    $("key-form").hidden = !$("key-form").hidden;
    $("key-title").textContent = "Keys of pipelines";
    if (!$("key-form").hidden) $("key").focus();
  };
  $("key-form").onsubmit = async (event) => {
    event.preventDefault();
    const key = $("key").value.trim();
    const refused = await fault(key);
    $("key-fault").textContent = refused;
    $("key-fault").hidden = !refused;
    if (refused) return;
    $("key").value = "";
    keys.add(key);
    changed();
  };
  const known = keys.all();
  $("keys-button").textContent = known.length ? `Keys (${known.length})` : "Enter a key";
  $("keys").replaceChildren(...known.map((key) => {
    const opened = [...keys.opens].filter(([, by]) => by === key).map(([name]) => name);
    const button = element("button", { type: "button", class: "quiet" }, "Forget");
    button.addEventListener("click", () => {
      keys.forget(key);
      changed();
    });
    const what = opened.length ? `opens ${opened.join(", ")}` : "opens no pipeline here any more";
    return element("li", {}, element("code", {}, `tm_${key.split("_")[1] ?? "?"}_…`), ` ${what} `, button);
  }));
}

/** Return why a key is of no use; empty if it opens a pipeline. */
async function fault(key) {
  try {
    const { body } = await ask(key);
    if (body.pipelines.some(({ auth_required }) => auth_required)) return "";
    return "This key opens no pipeline here. Is it complete, and does it have the scope query:read?";
  } catch (error) {
    if (error.status === 403) return `${error.message}.`;
    if (error.status === 401) return "No pipeline here accepts this key. Is it complete?";
    return `The key could not be checked: ${error.message}.`;
  }
}
