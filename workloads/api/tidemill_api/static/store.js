// Rows of one aggregation: those that the API answered, and over them what the live messages told since, by their rules:
// the highest revision of each window stays.

const MAX_ROWS = 2_000;

/** A group's identity; its text may be that of another group too. */
export const keyOf = (row, dimensions) => JSON.stringify(dimensions.map(({ name }) => row[name]));

export class Store {
  /** `accepts(row)`: whether a row of a live message belongs here; all do, if it is left out. */
  constructor(aggregation, accepts = () => true) {
    this.dimensions = aggregation.dimensions;
    this.accepts = accepts;
    this.rows = new Map();
    this.closedUntil = null;
  }

  /** The API's answer: what live messages have not told is as it says, and what neither tells is gone. */
  base(rows, closedUntil) {
    const told = [...this.rows].filter(([, { rev }]) => rev > 0);
    this.rows = new Map();
    for (const row of rows) this.#put(row, 0);
    for (const [key, entry] of told) if (this.accepts(entry.row)) this.rows.set(key, entry);
    this.close(closedUntil);
    this.#trim();
  }

  take(message) {
    // Changes were missed: the rows are as good as any answer of before.
    if (message.type === "reset") for (const entry of this.rows.values()) entry.rev = 0;
    if (message.type === "snapshot") this.close(message.closed_until);
    if (message.type === "snapshot" || message.type === "upsert") {
      for (const row of message.rows) if (this.accepts(row)) this.#put(row, message.rev);
      this.#trim();
    }
  }

  close(text) {
    const at = text ? Date.parse(text) : null;
    if (at !== null && (this.closedUntil === null || at > this.closedUntil)) this.closedUntil = at;
  }

  #put(row, rev) {
    const group = keyOf(row, this.dimensions);
    const key = `${group} ${row.window_start}`;
    const known = this.rows.get(key);
    if (known && known.rev > rev) return;
    // A session that has joined an earlier one.
    if (row.window_start === row.window_end) {
      this.rows.delete(key);
      return;
    }
    this.rows.set(key, { row, rev, group, start: Date.parse(row.window_start), end: Date.parse(row.window_end) });
  }

  // Oldest windows go first; a page that is left open for days stays small.
  #trim() {
    if (this.rows.size <= MAX_ROWS * 2) return;
    const entries = [...this.rows].sort(([, a], [, b]) => b.start - a.start).slice(0, MAX_ROWS);
    this.rows = new Map(entries);
  }

  closed(entry) {
    return this.closedUntil !== null && entry.end <= this.closedUntil;
  }

  /** All entries, oldest first. */
  entries() {
    return [...this.rows.values()].sort((a, b) => a.start - b.start);
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
