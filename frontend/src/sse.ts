// Requests to the API, and server-sent events over fetch: unlike EventSource it can POST, tells why a
// request was refused, and lets us decide when to try again.
import { setClock } from "./times";

const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 10_000;
const STEADY_MS = 5_000; // what was open for longer had not failed, however it ended
export const SILENCE_MS = 60_000; // a stream has a heartbeat each 15 s

/** Longer than the platform waits for an agent: a connection may have died without a word, and the browser goes on for minutes. */
export const ANSWER_MS = 40_000;

/** For what may take the server longer, as a push does, or the line, as a file does: it is waited for until it ends. */
export const LONG: RequestInit = { signal: null };

export const UNREACHED = "The server cannot be reached. Try again.";
export const UNANSWERED = "The server did not answer. What you asked for may have been done: look before you try again.";

/** A problem document, or what stands for one. */
export interface Problem {
  detail?: string;
  hint?: string;
  code?: string;
}

/** One event of a stream. */
export interface StreamEvent {
  type: string;
  content: Record<string, any>;
}

/** One frame of a stream: an event with its id, if it has one. */
interface Frame {
  id: string | null;
  data: StreamEvent;
}

/** A request that was answered with an error. */
export class Refused extends Error {
  constructor(readonly status: number, readonly problem: Problem) {
    super(problem.detail || `The server answered ${status}.`);
  }

  /** Whether the same request may succeed a little later, without anybody doing anything. */
  get passing(): boolean {
    return this.status === 502 || this.status === 503 || this.status === 504;
  }
}

/** Tell whether no server of ours has answered: nothing did, or something on the way, as a proxy whose server is away. */
export function isUnreached(error: unknown): boolean {
  return !(error instanceof Refused) || (error.passing && !error.problem.code);
}

/** Return in words what went wrong, for a person. */
export function wordsOf(error: unknown): string {
  if (!(error instanceof Refused) || isUnreached(error)) return UNREACHED;
  return [error.message, error.problem.hint].filter(Boolean).join(" ");
}

/** Fetch `url` of the API; an answer that is no success becomes a Refused. It is to come soon, unless there is another signal. */
export async function ask(url: string, options: RequestInit = {}): Promise<Response> {
  const response = await fetchAnswer(url, options);
  if (response.ok) checkOwn(response.headers.get("content-type"));
  return response;
}

/** Fetch a piece of a page, as the server renders it now. */
export async function fragment(url: string): Promise<Document> {
  const text = await (await fetchAnswer(url, { headers: { "HX-Request": "true" } })).text();
  if (isWholePage(text)) throw new Error(NOT_OWN);
  return new DOMParser().parseFromString(text, "text/html");
}

const NOT_OWN = "Something on the way has answered in the server's place.";

/** Throw if what has succeeded is a page: the API has none. A network that wants a sign-in first answers all with its own. */
export function checkOwn(type: string | null): void {
  if (type?.startsWith("text/html")) throw new Error(NOT_OWN);
}

/** Tell whether this is a page, of which the server gives one that is open pieces only. */
export function isWholePage(html: string): boolean {
  return /^(?:\s|<!--[\s\S]*?-->|<\?[^>]*>)*<(!doctype|html|head|title|meta|script|body)\b/i.test(html);
}

/** Return what a request was refused with. */
export function refusal({ status, responseText }: XMLHttpRequest): Refused {
  let problem: Problem = {};
  try {
    problem = JSON.parse(responseText);
  } catch {
    // Something on the way answered in its own words.
  }
  return new Refused(status, problem);
}

async function fetchAnswer(url: string, options: RequestInit): Promise<Response> {
  const headers = { Accept: "application/json, text/event-stream", ...(options.headers as Record<string, string>) };
  const asked = fetch(url, { signal: AbortSignal.timeout(ANSWER_MS), ...options, headers, redirect: "manual" });
  const isWrite = options.method !== undefined;
  const unanswered = new Refused(504, { detail: UNANSWERED, code: "unanswered" });
  const response = await asked.catch((error: Error) => { throw isWrite && error.name === "TimeoutError" ? unanswered : error; });
  setClock(response.headers.get("date"));
  if (response.type === "opaqueredirect" || response.status === 401) {
    // The sign-in has ended; the page itself leads to the sign-in page and back.
    location.reload();
  }
  if (!response.ok) throw new Refused(response.status, await response.json().catch(() => ({})));
  if (!isWrite || options.signal || response.status === 204) return response;
  // What has begun to be answered may be done, however the answer breaks off.
  return new Response(await response.blob().catch(() => { throw unanswered; }), response);
}

/** Send JSON and return the response. */
export function send(method: "POST" | "PUT", url: string, body: unknown = {}, options: RequestInit = {}): Promise<Response> {
  const headers = { "Content-Type": "application/json" };
  return ask(url, { ...options, method, headers, body: JSON.stringify(body) });
}

/** POST JSON and return the response. */
export function post(url: string, body: unknown = {}, options: RequestInit = {}): Promise<Response> {
  return send("POST", url, body, options);
}

/** Yield every frame of a response (WHATWG HTML, 9.2.6); `heard` is called for all that comes. */
export async function* frames(response: Response, heard: () => void = () => {}): AsyncGenerator<Frame> {
  if (!response.body) return;
  // The cast: the types of streams differ in what buffers they take.
  const reader = response.body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let begun = ""; // of a frame, which may be long: it is looked at once it is whole
  let tail = ""; // the last of it, with which its end may begin
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      const parts = (tail + value).split(/\r?\n\r?\n/);
      const rest = parts.pop() ?? "";
      for (const part of parts) {
        const frame = parse(begun + part);
        begun = "";
        if (frame) yield frame;
      }
      begun += rest.slice(0, -3);
      tail = rest.slice(-3);
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have broken already: that is why we are here
  }
}

function parse(text: string): Frame | null {
  let id: string | null = null;
  const data: string[] = [];
  for (const line of text.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") data.push(value);
    else if (name === "id") id = value;
  }
  return data.length ? { id, data: JSON.parse(data.join("\n")) } : null;
}

/** Ends a stream that says nothing: its connection is dead, and nobody else will tell. */
export class Silence {
  #abort = new AbortController();
  #timer = this.#start();

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  heard(): void {
    this.over();
    this.#timer = this.#start();
  }

  over(): void {
    clearTimeout(this.#timer);
  }

  #start(): ReturnType<typeof setTimeout> {
    return setTimeout(() => this.#abort.abort(), SILENCE_MS);
  }
}

/** Waits between tries: longer each time, never in step with others, and over at once when the network returns. */
export class Backoff {
  #wait = FIRST_WAIT_MS;
  #openedAt = Infinity;

  reset(): void {
    this.#wait = FIRST_WAIT_MS;
  }

  /** It is open: if it lasts, the pause after it is a first one. One that breaks soon is no success yet. */
  opened(): void {
    this.#openedAt = performance.now();
  }

  async pause(signal: AbortSignal): Promise<void> {
    if (performance.now() - this.#openedAt > STEADY_MS) this.reset();
    this.#openedAt = Infinity;
    const wait = this.#wait * (0.5 + Math.random());
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
    await new Promise<void>((resolve) => {
      const over = () => {
        clearTimeout(timer);
        removeEventListener("online", over);
        signal.removeEventListener("abort", over);
        resolve();
      };
      const timer = setTimeout(over, wait);
      addEventListener("online", over);
      signal.addEventListener("abort", over);
    });
  }
}
