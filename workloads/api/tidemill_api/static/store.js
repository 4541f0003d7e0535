// The rows of one aggregation, kept by the rules of the live messages: the highest revision of each window stays.

const MAX_ROWS = 20_000;

export class Store {
  constructor(aggregation) {
    this.dimensions = aggregation.dimensions;
    this.clear();
    this.closedUntil = null;
    this.truncated = false;
  }

  clear() {
    this.rows = new Map();
  }

  take(message) {
    if (message.type === "reset") this.clear();
    if (message.type === "snapshot") {
      this.truncated = message.truncated;
      this.#close(message.closed_until);
    }
    if (message.type === "snapshot" || message.type === "upsert") {
      for (const row of message.rows) this.#put(row, message.rev);
      this.#trim();
    }
  }

  progress(closedUntil) {
    this.#close(closedUntil);
  }

  #close(text) {
    const at = text ? Date.parse(text) : null;
    if (at !== null && (this.closedUntil === null || at > this.closedUntil)) this.closedUntil = at;
  }

  #put(row, rev) {
    const key = JSON.stringify([...this.dimensions.map(({ name }) => row[name]), row.window_start]);
    const known = this.rows.get(key);
    if (known && known.rev > rev) return;
    // A session that has joined an earlier one.
    if (row.window_start === row.window_end) {
      this.rows.delete(key);
      return;
    }
    this.rows.set(key, { row, rev, start: Date.parse(row.window_start), end: Date.parse(row.window_end) });
  }

  // Oldest windows go first; a page that is left open for days stays small.
  #trim() {
    if (this.rows.size <= MAX_ROWS) return;
    const entries = [...this.rows].sort(([, a], [, b]) => b.start - a.start).slice(0, MAX_ROWS * 0.8);
    this.rows = new Map(entries);
    this.truncated = true;
  }

  closed(entry) {
    return this.closedUntil !== null && entry.end <= this.closedUntil;
  }

  /** Entries of the latest `count` window starts, oldest first. */
  latest(count) {
    const starts = [...new Set([...this.rows.values()].map((entry) => entry.start))].sort((a, b) => b - a);
    const first = starts[Math.min(count, starts.length) - 1] ?? Infinity;
    return [...this.rows.values()].filter((entry) => entry.start >= first).sort((a, b) => a.start - b.start);
  }

  /** Values of a dimension that were seen, for suggestions. */
  values(name, most = 200) {
    const found = new Set();
    for (const { row } of this.rows.values()) {
      found.add(row[name]);
      if (found.size >= most) break;
    }
    return [...found].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true }));
  }
}
