// The rows of one aggregation: those of the latest answer, updated by live messages. For each window, the row with the
// highest revision is kept.

const MAX_ROWS = 2_000;

/** Return the key of a row's group. Its display text is not unique, for example for `1` and "1". */
export const keyOf = (row, dimensions) => JSON.stringify(dimensions.map(({ name }) => row[name]));

export class Store {
  /** `accepts(row)`: whether to store a row of a live message; by default all are stored. */
  constructor(aggregation, accepts = () => true) {
    this.dimensions = aggregation.dimensions;
    this.accepts = accepts;
    this.rows = new Map();
    this.closedUntil = null;
  }

  /** Replace the rows by those of an answer, except for rows of live messages. */
  base(rows, closedUntil) {
    const live = [...this.rows].filter(([, { rev }]) => rev > 0);
    this.rows = new Map();
    for (const row of rows) this.#put(row, 0);
    for (const [key, entry] of live) if (this.accepts(entry.row)) this.rows.set(key, entry);
    this.close(closedUntil);
    this.#trim();
  }

  take(message) {
    // Changes were missed, so the rows are not newer than those of an answer any more.
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
    // This session was joined to an earlier one.
    if (row.window_start === row.window_end) {
      this.rows.delete(key);
      return;
    }
    this.rows.set(key, { row, rev, group, start: Date.parse(row.window_start), end: Date.parse(row.window_end) });
  }

  // Drop the oldest windows, so that a page that is open for days does not grow.
  #trim() {
    if (this.rows.size <= MAX_ROWS * 2) return;
    const entries = [...this.rows].sort(([, a], [, b]) => b.start - a.start).slice(0, MAX_ROWS);
    this.rows = new Map(entries);
  }

  closed(entry) {
    return this.closedUntil !== null && entry.end <= this.closedUntil;
  }

  /** Return all entries, the oldest first. */
  entries() {
    return [...this.rows.values()].sort((a, b) => a.start - b.start);
  }

  /** Return the values of a dimension in the rows, for suggestions. */
  values(name, most = 200) {
    const found = new Set();
    for (const { row } of this.rows.values()) {
      found.add(row[name]);
      if (found.size >= most) break;
    }
    return [...found].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true }));
  }
}
