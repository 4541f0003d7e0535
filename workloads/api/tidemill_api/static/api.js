// The API as this page asks it: REST with the key of this tab, and the live WebSocket, which finds its way back.

const KEY = "tidemill-key";
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
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
  anomalies: (name) => `${pipelinePath(name)}/anomalies`,
  deadLetters: (name) => `${pipelinePath(name)}/dead-letters`,
  live: (name) => `${pipelinePath(name)}/live`,
};

export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(parameters).toString();
  const headers = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  let response;
  try {
    response = await fetch(query ? `${path}?${query}` : path, { headers, signal, cache: "no-cache" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The API does not answer.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, body.code ?? "error", body.detail ?? response.statusText);
  return body;
}

const FINAL = new Set([4400, 4401, 4403, 4404]);
const SILENCE_MS = 45_000;

/** One aggregation's changes. `on` is told {state, detail, code} and messages, in their order. */
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
      if (key.get()) socket.send(JSON.stringify({ type: "auth", token: key.get() }));
      this.#listen();
    };
    socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    socket.onclose = (event) => this.#ended(event.code);
  }

  // A connection can die without a word: the server speaks at least every heartbeat.
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
