// The client of the API: REST with the keys of this tab, and the live WebSocket, which reconnects by itself.

const KEYS = "tidemill-keys";
const PATIENCE_MS = 15_000;

/** The keys that were entered, and the pipelines that each opens. They are stored for this tab only. */
export const keys = {
  all: () => JSON.parse(sessionStorage.getItem(KEYS) ?? "[]"),
  add: (key) => sessionStorage.setItem(KEYS, JSON.stringify([...new Set([...keys.all(), key])])),
  forget: (key) => sessionStorage.setItem(KEYS, JSON.stringify(keys.all().filter((known) => known !== key))),
  opens: new Map(),
  of: (pipeline) => keys.opens.get(pipeline) ?? "",
};

export class ApiError extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

const pipelinePath = (name) => `/v1/pipelines/${encodeURIComponent(name)}`;
export const paths = {
  pipelines: () => "/v1/pipelines",
  pipeline: (name) => pipelinePath(name),
  aggregate: (name, aggregation) => `${pipelinePath(name)}/aggregates/${encodeURIComponent(aggregation)}`,
  anomalies: (name) => `${pipelinePath(name)}/anomalies`,
  deadLetters: (name) => `${pipelinePath(name)}/dead-letters`,
  live: (name) => `${pipelinePath(name)}/live`,
};

// A whole number that JavaScript would round is kept as text.
const exact = (_, value, context) =>
  (typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "") ? context.source : value);

/** Request an answer: {body, stale, at}; `at` is when the answer was last known to be current. */
export async function get(path, { parameters = {}, key = "", signal = undefined } = {}) {
  const query = new URLSearchParams(parameters).toString();
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const patience = AbortSignal.timeout(PATIENCE_MS);
  const ended = signal ? AbortSignal.any([signal, patience]) : patience;
  try {
    const response = await fetch(query ? `${path}?${query}` : path, { headers, signal: ended, cache: "no-cache" });
    const body = JSON.parse(await response.text(), exact);
    if (!response.ok) throw new ApiError(response.status, body.code ?? "error", body.detail ?? response.statusText);
    const age = Number(response.headers.get("age") ?? 0) * 1000;
    return { body, stale: body.stale === true, at: Date.now() - age };
  } catch (error) {
    if (error instanceof ApiError || signal?.aborted) throw error;
    throw new ApiError(0, "unreachable", patience.aborted ? `no answer within ${PATIENCE_MS / 1000} s` : "no connection");
  }
}

/** Combine several answers to one, which is as old as the oldest of them. */
export function together(answers, body) {
  return { body, stale: answers.some(({ stale }) => stale), at: Math.min(...answers.map(({ at }) => at)) };
}

const FINAL = new Set([4400, 4401, 4403, 4404]);
const SILENCE_MS = 45_000;

/** The live changes of one aggregation. Calls `on.state(state, detail, code)` and `on.message(message)`. */
export class Live {
  constructor(pipeline, parameters, on) {
    this.pipeline = pipeline;
    this.parameters = parameters;
    this.on = on;
    this.resume = "";
    this.failures = 0;
    this.#open();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    clearTimeout(this.watchdog);
    this.socket?.close();
  }

  #open() {
    const url = new URL(paths.live(this.pipeline), location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.search = new URLSearchParams({ ...this.parameters, ...(this.resume ? { resume: this.resume } : {}) });
    this.on.state("connecting", "connecting");
    this.error = null;
    const socket = (this.socket = new WebSocket(url));
    socket.onopen = () => {
      const key = keys.of(this.pipeline);
      if (key) socket.send(JSON.stringify({ type: "auth", token: key }));
      this.#listen();
    };
    socket.onmessage = (event) => this.#take(JSON.parse(event.data, exact));
    socket.onclose = (event) => this.#ended(event.code);
  }

  // A connection can break without an event. The server sends a message at least every heartbeat, so silence shows it.
  #listen() {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.socket.close(), SILENCE_MS);
  }

  #take(message) {
    if (this.closed) return;
    this.#listen();
    if (message.type === "error") this.error = message;
    if (message.type === "progress") {
      this.resume = message.resume;
      this.failures = 0;
      this.on.state(message.degraded ? "degraded" : "live", message.degraded ? "live, polling" : "live");
    }
    this.on.message(message);
  }

  #ended(code) {
    clearTimeout(this.watchdog);
    if (this.closed) return;
    if (FINAL.has(code)) {
      this.on.state("failed", this.error?.detail ?? "the connection was refused", code);
      return;
    }
    const wait = Math.min(15_000, 500 * 2 ** this.failures) * (0.7 + 0.6 * Math.random());
    this.failures += 1;
    this.on.state("waiting", `reconnecting in ${Math.ceil(wait / 1000)} s`);
    this.timer = setTimeout(() => this.#open(), wait);
  }
}
