// What a panel says of itself: each state has words of its own, and none says more than is known.

import * as format from "./format.js";

const clock = (ms) => `${format.moment(new Date(ms).toISOString())} UTC`;
const ago = (ms) => `${format.duration(Date.now() - ms)} ago`;
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

/**
 * The state of a panel and its text.
 * about: {count: how many things are shown, empty: said if there are none, filters: texts of what narrows them,
 * notes: what was left out}.
 */
export function words(feed, { count = 1, empty = "", filters = [], notes = [] } = {}) {
  const { state, detail, body, at } = feed;
  if (state === "loading") return ["loading", "Loading …"];
  if (state === "broken") return ["broken", `This panel cannot be drawn: ${sentence(detail)} The others go on.`];
  if (state === "wrong") return ["wrong", sentence(detail)];
  const what = count ? "what is shown is of then" : "nothing was there then";
  if (state === "unreachable") {
    return ["unreachable", body ? `The API does not answer (${detail}): stale since ${clock(at)}, ${ago(at)}; ${what}.`
      : `The API does not answer (${detail}). It is asked again and again.`];
  }
  if (state === "unavailable") {
    return ["unavailable", body ? `Stale since ${clock(at)}, ${ago(at)}; ${what}: ${sentence(detail)}`
      : `Nothing is known yet: ${sentence(detail)}`];
  }
  if (state === "stale") return ["stale", `Stale since ${clock(at)}, ${ago(at)}: the database does not answer; ${what}.`];
  if (!count && filters.length) return ["filtered", `Nothing fits the filter ${filters.join(" and ")}.`];
  if (!count) return ["empty", empty];
  return notes.length ? ["truncated", notes.join(" ")] : ["fresh", ""];
}

/** Say it below a panel's head; whether there is something to show. */
export function tell(node, feed, about) {
  const [state, text] = words(feed, about);
  node.dataset.state = state;
  node.hidden = !text;
  if (node.textContent !== text) node.textContent = text;
  const card = node.closest(".card, .figures-card");
  if (card) card.dataset.state = state;
  return feed.body !== null && state !== "broken";
}
