// Server-sent events over fetch: unlike EventSource it can POST, tells why a request was refused,
// and lets us decide when to try again.

const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 10_000;

/** A request that was answered with an error. `problem` is the problem document, or what stands for it. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.problem = problem;
  }

  /** Whether the same request may succeed a little later, without anybody doing anything. */
  get passing() {
    return this.status === 502 || this.status === 503 || this.status === 504;
  }
}

/** Fetch `url`; an answer that is no success becomes a Refused. */
export async function ask(url, options = {}) {
  const headers = { Accept: "application/json, text/event-stream", ...options.headers };
  const response = await fetch(url, { ...options, headers, redirect: "manual" });
  if (response.type === "opaqueredirect" || response.status === 401) {
    // The sign-in has ended; the page itself leads to the sign-in page and back.
    location.reload();
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ detail: "", hint: "", code: "" }));
  throw new Refused(response.status, problem);
}

/** Send JSON and return the response. */
export function post(url, body = {}, options = {}) {
  const headers = { "Content-Type": "application/json", ...options.headers };
  return ask(url, { ...options, method: "POST", headers, body: JSON.stringify(body) });
}

/** Yield `{id, data}` of every frame in a response, `data` parsed from JSON (WHATWG HTML, 9.2.6). */
export async function* frames(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const frame = parse(part);
        if (frame) yield frame;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have broken already: that is why we are here
  }
}

function parse(text) {
  let id = null;
  const data = [];
  for (const line of text.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") data.push(value);
    else if (name === "id") id = value;
  }
  return data.length ? { id, data: JSON.parse(data.join("\n")) } : null;
}

/** Waits between tries: longer each time, never in step with others, and over at once when the network returns. */
export class Backoff {
  #wait = FIRST_WAIT_MS;

  reset() {
    this.#wait = FIRST_WAIT_MS;
  }

  async pause(signal) {
    const wait = this.#wait * (0.5 + Math.random());
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
    await new Promise((resolve) => {
      const over = () => {
        clearTimeout(timer);
        removeEventListener("online", over);
        signal?.removeEventListener("abort", over);
        resolve();
      };
      const timer = setTimeout(over, wait);
      addEventListener("online", over);
      signal?.addEventListener("abort", over);
    });
  }
}
