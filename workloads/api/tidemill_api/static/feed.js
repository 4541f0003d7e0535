// What one panel shows: the latest answer to its question, how good that answer is, and when it is asked for again.
// A feed knows nothing of the others, so the failure of one blanks no other.

import { ApiError } from "./api.js";

export class Feed {
  /** `show(feed)` draws: called at once, after each answer, and after each failure. */
  constructor(show, everyMs) {
    this.show = show;
    this.everyMs = everyMs;
    this.refused = () => false;
    this.stop();
  }

  /** Ask another question; what is known of the one before is forgotten. `ask(signal)` gives {body, stale, at}. */
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

  /** Stop, and take what was shown from the page. */
  clear() {
    this.stop();
    this.#draw();
  }

  /** Ask now. An answer that comes after another question was asked is dropped. */
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

  /** Draw what is known once more. */
  redraw() {
    if (this.ask) this.#draw();
  }

  #again() {
    // Nobody looks: the question waits until somebody does.
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
      // The question cannot be answered: an earlier answer was to another one.
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
