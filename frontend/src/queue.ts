// What a person has sent and no turn has begun with: messages on their way, and what waits above the
// composer for the end of the turn before. All tabs of a person in this browser share it.
import { Draft } from "./drafts";
import type { Pending } from "./turn_stream";

const FRESH_MS = 3_600_000;
const ANSWER_MS = 250; // that a tab has to say that it is there

/** Return a new message of a session; null for one that its first message makes. */
export function written(message: string, session: string | null): Pending {
  // Not randomUUID: pages served over plain HTTP to another machine do not have it.
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  return { message, messageId: bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(""), session, at: Date.now() };
}

let unkept = ""; // where nothing can be kept

/** Return what this tab is known by, also after a reload. */
export function tabName(): string {
  const made = () => crypto.getRandomValues(new Uint32Array(2)).join("-");
  try {
    const name = sessionStorage.getItem("greylag-tab") ?? made();
    sessionStorage.setItem("greylag-tab", name);
    return name;
  } catch {
    return (unkept ||= made());
  }
}

const tabs = new BroadcastChannel("greylag-tabs");
tabs.addEventListener("message", ({ data }) => data.asked === tabName() && tabs.postMessage({ here: data.asked }));

/** Return which tabs have begun a session of `page` with a message that no turn has taken, and are closed. */
export async function closedTabs(page: string): Promise<string[]> {
  const names = ["sent", "queued"].flatMap((kind) => Draft.names(`${kind} ${page}?new `));
  const closed = new Set(names.map((name) => name.slice(name.lastIndexOf(" ") + 1)));
  closed.delete(tabName());
  if (!closed.size) return [];
  const hear = ({ data }: MessageEvent) => closed.delete(data.here);
  tabs.addEventListener("message", hear);
  for (const asked of closed) tabs.postMessage({ asked });
  await new Promise((done) => setTimeout(done, ANSWER_MS));
  tabs.removeEventListener("message", hear);
  return [...closed];
}

/** Tell whether a page that finds this message may send it; what is older might surprise the person. */
export function isFresh({ at }: Pending): boolean {
  return Date.now() - at < FRESH_MS;
}

/** The messages of one session that are on their way. */
export class Sent {
  #kept: Draft;

  constructor(session: string) {
    this.#kept = new Draft(`sent ${session}`);
  }

  get all(): Pending[] {
    return JSON.parse(this.#kept.read() || "[]");
  }

  add(pending: Pending): void {
    this.#keep([...this.all, pending]);
  }

  /** Take what another name has. */
  takeFrom(other: Sent): void {
    const { all } = other;
    other.#keep([]);
    this.#keep([...this.all, ...all]);
  }

  forget({ messageId }: Pending): void {
    this.#keep(this.all.filter((one) => one.messageId !== messageId));
  }

  #keep(all: Pending[]): void {
    this.#kept.keep(all.length ? JSON.stringify(all) : "");
  }
}

/** The message that waits in one session. Tabs that send it at once make one turn: it has its id already. */
export class Queue {
  #box: HTMLElement;
  #session: () => string;
  #back: (words: string) => void;

  /** `session` names it; `back` is given what is taken back. */
  constructor(form: HTMLElement, session: () => string, back: (words: string) => void) {
    this.#session = session;
    this.#back = back;
    this.#box = document.createElement("div");
    this.#box.className = "queued";
    this.#box.hidden = true;
    this.#box.setAttribute("role", "status");
    this.#box.innerHTML = '<p><strong>Next:</strong> <span dir="auto"></span></p><button class="btn btn-small btn-quiet" type="button">Take back</button>';
    this.#box.querySelector("button")!.addEventListener("click", () => {
      this.giveBack();
      form.querySelector("textarea")!.focus();
    });
    form.prepend(this.#box);
    addEventListener("storage", () => this.show());
  }

  /** Show what waits. */
  show(): void {
    const words = this.waiting?.message ?? "";
    this.#box.querySelector("span")!.textContent = words;
    this.#box.hidden = words === "";
  }

  get waiting(): Pending | null {
    return JSON.parse(this.#kept.read() || "null");
  }

  /** Let a message wait, after what does already or before it. */
  add(pending: Pending, place: "after" | "before" = "after"): void {
    const before = this.waiting?.message;
    const all = place === "after" ? [before, pending.message] : [pending.message, before];
    this.#keep({ ...pending, message: all.filter(Boolean).join("\n\n") });
  }

  /** Return what waits, which then waits no more. */
  take(): Pending | null {
    const { waiting } = this;
    if (waiting) this.#keep(null);
    return waiting;
  }

  /** Let wait, too, what waits under another name. */
  takeFrom(name: string): void {
    const other = new Draft(`queued ${name}`);
    const text = other.read();
    other.keep("");
    if (text) this.add(JSON.parse(text));
  }

  giveBack(): void {
    const taken = this.take();
    if (taken) this.#back(taken.message);
  }

  get #kept(): Draft {
    return new Draft(`queued ${this.#session()}`);
  }

  #keep(pending: Pending | null): void {
    this.#kept.keep(pending ? JSON.stringify(pending) : "");
    this.show();
  }
}
