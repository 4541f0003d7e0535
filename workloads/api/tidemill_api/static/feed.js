// The data of one panel: its latest answer, the state of that answer, and the timer of the next request.
// Feeds do not depend on each other, so a failure in one panel does not affect the others.

import { ApiError } from "./api.js";

export class Feed {
  /** `show(feed)` draws the panel. It is called at once, after each answer, and after each failure. */
  constructor(show, everyMs) {
    this.show = show;
    this.everyMs = everyMs;
    this.refused = () => false;
    this.stop();
  }

  /** Start a new request and drop the earlier answer. `ask(signal)` returns {body, stale, at}. */
  start(ask) {
    this.stop();
    this.ask = ask;
    this.#draw();
    return this.refresh();
  }

  stop() {
    this.turn?.abort();
    clearTimeout(this.timer);
    Object.assign(this, { ask: null, state: "loading", body: null, at: null, detail: "", turn: null });
  }

  /** Stop, and remove the data from the page. */
  clear() {
    this.stop();
    this.#draw();
  }

  /** Send the request now. Its answer is dropped if another request was started meanwhile. */
  async refresh() {
    if (!this.ask) return;
    this.turn?.abort();
    clearTimeout(this.timer);
    const turn = (this.turn = new AbortController());
    try {
      const { body, stale, at } = await this.ask(turn.signal);
      if (turn !== this.turn) return;
      Object.assign(this, { state: stale ? "stale" : "fresh", body, at, detail: "" });
    } catch (error) {
      if (turn !== this.turn) return;
      this.#failed(error);
      if (!this.ask) return;
    }
    this.turn = null;
    this.timer = setTimeout(() => this.#again(), typeof this.everyMs === "function" ? this.everyMs() : this.everyMs);
    this.#draw();
  }

  /** Draw the latest answer again. */
  redraw() {
    if (this.ask) this.#draw();
  }

  #again() {
    // While the page is hidden, the request waits.
    if (document.hidden) this.timer = setTimeout(() => this.#again(), 1_000);
    else this.refresh();
  }

  #failed(error) {
    if (!(error instanceof ApiError)) {
      console.error(error);
      Object.assign(this, { state: "broken", detail: error.message });
    } else if (!this.refused(error)) {
      const state = error.status === 0 ? "unreachable" : error.status >= 500 ? "unavailable" : "wrong";
      Object.assign(this, { state, detail: error.message });
      // The request is wrong, so an earlier answer was to a different request.
      if (state === "wrong") this.body = null;
    }
  }

  #draw() {
    try {
      this.show(this);
    } catch (error) {
      console.error(error);
      Object.assign(this, { state: "broken", detail: error.message, body: null });
      this.show(this);
    }
  }
}
