// The conversation of a project's page: its composer, its turns, and what is live around them.
import htmx from "htmx.org/dist/htmx.esm.js";
import { Draft } from "./drafts";
import { Scroller } from "./scroller";
import { Refused, wordsOf } from "./sse";
import { type Decision, type Handlers, type Pending, TurnStream } from "./turn_stream";
import { TurnView } from "./turn_view";

const TOUCH = "(pointer: coarse)"; // there Enter is a new line

/** Bring the console to life, on a page that has one. */
export function startConsole(): void {
  const root = document.querySelector<HTMLElement>("[data-console]");
  if (root) new Console(root).start();
}

class Console {
  #root: HTMLElement;
  #form: HTMLFormElement;
  #text: HTMLTextAreaElement;
  #scroller: Scroller;
  #api: string;
  #page: string;
  #stream: TurnStream | null = null; // the turn that is under way
  #stopWanted = false;
  #sessions: Promise<unknown> | null = null; // the list of them, while it is fetched
  #leaving = new AbortController();

  constructor(root: HTMLElement) {
    this.#root = root;
    this.#form = root.querySelector<HTMLFormElement>("#composer")!;
    this.#text = root.querySelector<HTMLTextAreaElement>("#message")!;
    this.#api = root.dataset.api!;
    this.#page = root.dataset.page!;
    const place = root.querySelector<HTMLElement>("#scroller")!;
    this.#scroller = new Scroller(place, place.querySelector<HTMLElement>("#scrolled")!, this.#button("to-end"));
  }

  start(): void {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#text.addEventListener("input", () => this.#draft.keep(this.#text.value));
    this.#text.addEventListener("keydown", (event) => this.#sendOnEnter(event));
    this.#button("stop").addEventListener("click", (event) => {
      event.preventDefault();
      void this.#stop();
    });
    addEventListener("pagehide", () => this.#leaving.abort());
    addEventListener("pageshow", (event) => event.persisted && location.reload());
    document.addEventListener("greylag:changed", () => void this.#wakeUp());
    this.#text.value ||= this.#draft.read();
    // Until now the form is a plain one: Enter began a new line in it.
    this.#form.dataset.ready = "";
    this.#readPage();
  }

  get #conversation(): HTMLElement {
    return this.#root.querySelector<HTMLElement>("#conversation")!;
  }

  get #session(): string | null {
    return this.#conversation.dataset.session || null;
  }

  get #draft(): Draft {
    return new Draft(`${this.#page}?${this.#session ?? "new"}`);
  }

  #sendOnEnter(event: KeyboardEvent): void {
    // Enter also ends the choice of a character in input methods; and where one types with a thumb it is a new line.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia(TOUCH).matches) return;
    event.preventDefault();
    this.#form.requestSubmit();
  }

  // What the server has rendered.

  #readPage(): void {
    const turns = [...this.#conversation.querySelectorAll<HTMLElement>(".turn")];
    this.#dress(turns.slice(0, -1));
    const newest = turns.at(-1);
    if (newest?.dataset.turn) void this.#replay(newest, newest.dataset.turnStatus === "running");
    else if (newest) this.#dress([newest]);
    this.#offerEarlier();
    this.#sendPending();
    this.#scroller.follow();
  }

  #dress(turns: HTMLElement[]): void {
    for (const article of turns) {
      const text = article.querySelector("[data-markdown]")?.textContent;
      if (text) void TurnView.format(article, text);
      if (article.dataset.turn) this.#offerSteps(article);
    }
  }

  #replay(article: HTMLElement, running: boolean): Promise<void> {
    const stream = new TurnStream(this.#api, { session: this.#session }, article.dataset.turn);
    const view = this.#view(article, stream);
    if (running) this.#begin(stream, view);
    return this.#follow(stream, view, true);
  }

  #offerSteps(article: HTMLElement): void {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "btn-text";
    button.textContent = "Show the steps";
    button.addEventListener("click", () => {
      button.disabled = true;
      void this.#replay(article, false);
    });
    article.querySelector(".turn-end")!.append(" ", button);
  }

  /** Put earlier messages above those that are there, which stay where they are. */
  #offerEarlier(): void {
    const link = this.#conversation.querySelector<HTMLAnchorElement>("#earlier a");
    link?.addEventListener("click", async (event) => {
      event.preventDefault();
      await this.#try(async () => {
        const response = await fetch(link.dataset.part!, { headers: { "HX-Request": "true" } });
        if (!response.ok) throw new Refused(response.status, {});
        this.#putEarlier(new DOMParser().parseFromString(await response.text(), "text/html"));
      });
    });
  }

  #putEarlier(part: Document): void {
    const known = this.#conversation.querySelectorAll(".turn").length;
    const all = [...part.querySelectorAll<HTMLElement>(".turn")];
    const earlier = all.slice(0, Math.max(0, all.length - known));
    const place = this.#conversation.querySelector("#earlier")!;
    const next = part.querySelector("#earlier");
    this.#scroller.keepInPlace(() => {
      place.after(...earlier);
      if (next) place.replaceWith(next);
      else place.remove();
      this.#dress(earlier);
    });
    this.#offerEarlier();
  }

  /** Show what was said before, once the environment has woken and can tell it. */
  async #wakeUp(): Promise<void> {
    const active = document.getElementById("project-header")?.dataset.status === "active";
    if (!active || this.#stream || this.#conversation.dataset.asleep !== "true") return;
    this.#conversation.dataset.asleep = "false";
    const query = this.#session ? `?session=${encodeURIComponent(this.#session)}` : location.search;
    await this.#sessions; // htmx drops a request that meets another one under way
    await htmx.ajax("get", `${this.#page}/conversation${query}`, { target: "#conversation", swap: "outerHTML" });
    await this.#showSessions();
    if (!this.#stream) this.#readPage();
  }

  // Sending.

  #submit(): void {
    const message = this.#text.value;
    if (!message.trim()) return;
    if (this.#stream) return this.#say("The agent is still at work: wait for its answer, or stop it.");
    this.#text.value = "";
    this.#draft.keep("");
    const pending = { message, messageId: newId(), session: this.#session };
    this.#keep(pending);
    this.#send(pending);
  }

  #send(pending: Pending): void {
    const stream = new TurnStream(this.#api, pending);
    const view = TurnView.create(pending.message, (id, decision) => this.#decide(stream, id, decision), this.#root.dataset.author);
    this.#root.querySelector("#conversation-empty")?.remove();
    this.#conversation.append(view.article);
    this.#begin(stream, view);
    this.#scroller.follow();
    void this.#follow(stream, view, false);
  }

  /** A page that was left before its message had become a turn sends it again: the same id, the same turn. */
  #sendPending(): void {
    const pending = this.#kept();
    if (!pending || pending.session !== this.#session) return;
    const known = [...this.#conversation.querySelectorAll<HTMLElement>("[data-message-id]")];
    if (known.some((article) => article.dataset.messageId === pending.messageId)) this.#keep(null);
    else if (!this.#stream) this.#send(pending);
  }

  #begin(stream: TurnStream, view: TurnView): void {
    this.#stream = stream;
    this.#stopWanted = false;
    this.#conversation.setAttribute("aria-busy", "true");
    this.#button("stop").hidden = false;
    this.#button("send").disabled = true;
    view.working("Working");
  }

  async #follow(stream: TurnStream, view: TurnView, clear: boolean): Promise<void> {
    let fresh = clear;
    let ending = "";
    const handlers: Handlers = {
      opened: () => {
        if (this.#stream === stream) this.#say("");
        // A message that is sent again tells it again; a turn that is gone on with does not.
        if (stream.turnId === null) view.forgetWaking();
      },
      lost: () => this.#stream === stream && this.#say("The connection was lost. Trying again..."),
      waking: (content) => view.waking(String(content.message ?? "")),
      event: (type, content) => {
        if (fresh) view.clear();
        fresh = false;
        if (type === "turn") this.#begun(stream, view, content);
        if (type === "complete" && content.stop_reason === "cancelled") ending = "Stopped.";
        view.apply(type, content);
        if (this.#stream === stream) view.working(view.asks ? "Waiting for your answer" : "Working");
      },
    };
    try {
      await stream.follow(handlers, this.#leaving.signal);
    } catch (error) {
      this.#refused(stream, view, error);
    }
    if (!this.#leaving.signal.aborted) await this.#over(stream, view, fresh ? null : ending);
  }

  #begun(stream: TurnStream, view: TurnView, content: Record<string, any>): void {
    view.article.dataset.turn = content.turn_id;
    if (content.demonstration && !this.#conversation.querySelector(".banner")) {
      view.apply("status", { message: content.demonstration });
    }
    if (this.#stream !== stream) return;
    this.#keep(null);
    if (content.session_id !== this.#session) this.#adopt(content.session_id);
    if (this.#stopWanted) void this.#stop();
  }

  /** A first message has made its session: from now on this page is that session's. */
  #adopt(session: string): void {
    const typed = this.#text.value;
    this.#draft.keep("");
    this.#conversation.dataset.session = session;
    this.#draft.keep(typed);
    this.#conversation.dataset.asleep = "false"; // nothing was said in it before
    (this.#form.elements.namedItem("session") as HTMLInputElement).value = session;
    history.replaceState(null, "", `${this.#page}?session=${encodeURIComponent(session)}`);
    void this.#showSessions();
  }

  #refused(stream: TurnStream, view: TurnView, error: unknown): void {
    if (!(error instanceof Refused)) throw error;
    if (this.#stream !== stream) return this.#say(wordsOf(error));
    view.fail({ ...error.problem, detail: error.message });
  }

  async #over(stream: TurnStream, view: TurnView, words: string | null): Promise<void> {
    const wasCurrent = this.#stream === stream;
    if (words !== null) await view.finish(words);
    if (!wasCurrent) return;
    if (words === null) view.working("");
    this.#say("");
    // What did not become a turn comes back, before what was typed since.
    if (stream.turnId === null) this.#giveBack(stream.pending.message);
    this.#keep(null);
    this.#stream = null;
    this.#conversation.removeAttribute("aria-busy");
    this.#button("stop").hidden = true;
    this.#button("send").disabled = false;
    document.dispatchEvent(new Event("greylag:turn-ended"));
    if (document.activeElement === document.body) this.#text.focus({ preventScroll: true });
    await this.#showSessions();
  }

  #giveBack(message: string): void {
    this.#text.value = [message, this.#text.value].filter(Boolean).join("\n\n");
    this.#draft.keep(this.#text.value);
  }

  async #stop(): Promise<void> {
    const stream = this.#stream;
    if (!stream) return;
    if (stream.turnId === null) {
      this.#stopWanted = true;
      return this.#say("It is stopped as soon as the agent has the message.");
    }
    this.#say("Stopping...");
    await this.#try(() => stream.cancel());
  }

  #decide(stream: TurnStream, id: string, decision: Decision): Promise<boolean> {
    return this.#try(() => stream.confirm(id, decision));
  }

  #view(article: HTMLElement, stream: TurnStream): TurnView {
    return new TurnView(article, (id, decision) => this.#decide(stream, id, decision));
  }

  /** Do it and tell what went wrong; true when nothing did. */
  async #try(action: () => Promise<unknown>): Promise<boolean> {
    try {
      await action();
      return true;
    } catch (error) {
      this.#say(wordsOf(error));
      return false;
    }
  }

  // The page around it.

  async #showSessions(): Promise<void> {
    const query = this.#session ? `?session=${encodeURIComponent(this.#session)}` : "?session=new";
    this.#sessions = htmx.ajax("get", `${this.#page}/sessions${query}`, { target: "#sessions", swap: "morph" as never });
    await this.#sessions;
  }

  #say(words: string): void {
    const place = this.#root.querySelector("#console-status")!;
    if (place.textContent !== words) place.textContent = words;
  }

  #button(id: string): HTMLButtonElement {
    return this.#root.querySelector<HTMLButtonElement>(`#${id}`)!;
  }

  #keep(pending: Pending | null): void {
    const name = `greylag-pending:${this.#page}`;
    if (pending) sessionStorage.setItem(name, JSON.stringify(pending));
    else sessionStorage.removeItem(name);
  }

  #kept(): Pending | null {
    return JSON.parse(sessionStorage.getItem(`greylag-pending:${this.#page}`) ?? "null");
  }
}

function newId(): string {
  // Not randomUUID: pages served over plain HTTP to another machine do not have it.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
