// The texts of a panel's states.

import * as format from "./format.js";

const clock = (ms) => `${format.moment(new Date(ms).toISOString())} UTC`;
const ago = (ms) => `${format.duration(Date.now() - ms)} ago`;
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

/**
 * Return the state of a panel and its text.
 *
 * count: the number of rows shown. empty: the text if there are none. filters: the filters as texts. notes: sentences
 * about rows that are not shown.
 */
export function words(feed, { count = 1, empty = "", filters = [], notes = [] } = {}) {
  const { state, detail, body, at } = feed;
  if (state === "loading") return ["loading", "Loading …"];
  if (state === "broken") return ["broken", `This panel cannot be drawn: ${sentence(detail)} The other panels still work.`];
  if (state === "wrong") return ["wrong", sentence(detail)];
  const what = count ? "the data shown is of that time" : "there was no data at that time";
  if (state === "unreachable") {
    return ["unreachable", body ? `The API does not answer (${detail}): stale since ${clock(at)}, ${ago(at)}; ${what}.`
      : `The API does not answer (${detail}). The page keeps trying.`];
  }
  if (state === "unavailable") {
    return ["unavailable", body ? `Stale since ${clock(at)}, ${ago(at)}; ${what}: ${sentence(detail)}`
      : `There is no data yet: ${sentence(detail)}`];
  }
  if (state === "stale") return ["stale", `Stale since ${clock(at)}, ${ago(at)}: the database does not answer; ${what}.`];
  if (!count && filters.length) return ["filtered", `No row matches the filter ${filters.join(" and ")}.`];
  if (!count) return ["empty", empty];
  return notes.length ? ["truncated", notes.join(" ")] : ["fresh", ""];
}

/** Show the state below a panel's head. Return whether there is something to show. */
export function tell(node, feed, about) {
  const [state, text] = words(feed, about);
  node.dataset.state = state;
  node.hidden = !text;
  if (node.textContent !== text) node.textContent = text;
  const card = node.closest(".card, .figures-card");
  if (card) card.dataset.state = state;
  return feed.body !== null && state !== "broken";
}
