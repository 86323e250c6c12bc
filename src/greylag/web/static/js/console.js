// The message console of a project's page.
import { aroundPaint, paint } from "./paint.js";
import { Prose } from "./prose.js";
import { Refused } from "./sse.js";
import { TurnStream } from "./turn_stream.js";
import { TurnView } from "./turn_view.js";

const SLACK_PX = 120;

/** Bring the console to life, on a page that has one. */
export function startConsole() {
  const root = document.querySelector("[data-console]");
  if (root) new Console(root).start();
}

class Console {
  #root;
  #form;
  #text;
  #stream = null; // the turn that is under way
  #stopWanted = false;
  #sessions = null; // the list of them, while it is fetched
  #leaving = new AbortController();

  constructor(root) {
    this.#root = root;
    this.#form = root.querySelector("#composer");
    this.#text = root.querySelector("#message");
    this.api = root.dataset.api;
    this.page = root.dataset.page;
  }

  start() {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#text.addEventListener("keydown", (event) => {
      // Enter also ends the choice of a character in input methods; that is not ours.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#button("stop").addEventListener("click", (event) => {
      event.preventDefault();
      this.#stop();
    });
    aroundPaint(() => this.#keepInSight());
    addEventListener("pagehide", () => this.#leaving.abort());
    addEventListener("pageshow", (event) => event.persisted && location.reload());
    document.addEventListener("greylag:changed", () => this.#wakeUp());
    // Until now the form is a plain one: Enter began a new line in it.
    this.#form.dataset.ready = "";
    this.#readPage();
  }

  get #conversation() {
    return this.#root.querySelector("#conversation");
  }

  get #session() {
    return this.#conversation.dataset.session || null;
  }

  // What the server has rendered.

  #readPage() {
    for (const place of this.#conversation.querySelectorAll("[data-markdown]")) format(place);
    const turns = [...this.#conversation.querySelectorAll("[data-turn]")];
    const newest = turns.pop();
    for (const article of turns) this.#offerSteps(article);
    if (newest) this.#replay(newest, newest.dataset.turnStatus === "running");
    this.#sendPending();
    newest?.scrollIntoView({ block: "end" });
  }

  #replay(article, running) {
    const stream = new TurnStream(this.api, { turnId: article.dataset.turn, session: this.#session });
    const view = this.#view(article, stream);
    if (running) this.#begin(stream, view);
    return this.#follow(stream, view, { clear: true });
  }

  #offerSteps(article) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "btn btn-quiet btn-small";
    button.textContent = "Show the steps";
    button.addEventListener("click", () => {
      button.disabled = true;
      this.#replay(article, false);
    });
    article.querySelector(".turn-end").append(" ", button);
  }

  /** Show what was said before, once the environment has woken and can tell it. */
  async #wakeUp() {
    const active = document.getElementById("project-header")?.dataset.status === "active";
    if (!active || this.#stream || this.#conversation.dataset.asleep !== "true") return;
    this.#conversation.dataset.asleep = "false";
    const query = this.#session ? `?session=${encodeURIComponent(this.#session)}` : location.search;
    await this.#sessions; // htmx drops a request that meets another one under way
    await htmx.ajax("GET", `${this.page}/conversation${query}`, { target: "#conversation", swap: "outerHTML" });
    await this.#showSessions();
    if (!this.#stream) this.#readPage();
  }

  // Sending.

  #submit() {
    const message = this.#text.value;
    if (!message.trim()) return;
    if (this.#stream) return this.#say("The agent is still at work: wait for its answer, or stop it.");
    this.#text.value = "";
    const pending = { message, messageId: newId(), session: this.#session };
    this.#keep(pending);
    this.#send(pending);
  }

  #send(pending) {
    const stream = new TurnStream(this.api, pending);
    const view = TurnView.create(pending.message, (id, decision) => this.#decide(stream, id, decision));
    this.#root.querySelector("#conversation-empty")?.remove();
    this.#conversation.append(view.article);
    this.#begin(stream, view);
    view.article.scrollIntoView({ block: "nearest" });
    this.#follow(stream, view, { clear: false });
  }

  /** A page that was left before its message had become a turn sends it again: the same id, the same turn. */
  #sendPending() {
    const pending = this.#kept();
    if (!pending || pending.session !== this.#session) return;
    const known = [...this.#conversation.querySelectorAll("[data-message-id]")];
    if (known.some((article) => article.dataset.messageId === pending.messageId)) this.#keep(null);
    else if (!this.#stream) this.#send(pending);
  }

  #begin(stream, view) {
    this.#stream = stream;
    this.#stopWanted = false;
    this.#conversation.setAttribute("aria-busy", "true");
    this.#button("stop").hidden = false;
    this.#button("send").disabled = true;
    view.working("Working");
  }

  async #follow(stream, view, { clear }) {
    let fresh = clear;
    let ending = "";
    const refresh = () => {
      if (fresh) view.clear();
      if (fresh && this.#stream === stream) view.working("Working");
      fresh = false;
    };
    const handlers = {
      opened: () => {
        this.#say("");
        // A message that is sent again tells it again; a turn that is gone on with does not.
        if (stream.turnId === null) view.forgetWaking();
      },
      lost: () => this.#say("The connection was lost. Trying again..."),
      waking: (content) => view.waking(content),
      event: (type, content) => {
        refresh();
        if (type === "turn") this.#begun(stream, view, content);
        if (type === "complete" && content.stop_reason === "cancelled") ending = "Stopped.";
        const follow = this.#keepInSight();
        view.apply(type, content);
        follow();
      },
    };
    try {
      await stream.follow(handlers, this.#leaving.signal);
    } catch (error) {
      this.#refused(stream, view, error);
    }
    if (!this.#leaving.signal.aborted) await this.#over(stream, view, fresh ? null : ending);
  }

  #begun(stream, view, content) {
    view.article.dataset.turn = content.turn_id;
    if (content.demonstration && !this.#conversation.querySelector(".banner")) {
      view.apply("status", { message: content.demonstration });
    }
    if (this.#stream !== stream) return;
    this.#keep(null);
    if (content.session_id !== this.#session) this.#adopt(content.session_id);
    if (this.#stopWanted) this.#stop();
  }

  /** A first message has made its session: from now on this page is that session's. */
  #adopt(session) {
    this.#conversation.dataset.session = session;
    this.#conversation.dataset.asleep = "false"; // nothing was said in it before
    this.#form.elements.session.value = session;
    history.replaceState(null, "", `${this.page}?session=${encodeURIComponent(session)}`);
    this.#showSessions();
  }

  #refused(stream, view, error) {
    if (!(error instanceof Refused)) throw error;
    if (this.#stream !== stream) return this.#say(error.problem.detail || error.message);
    view.fail(error.problem);
    this.#keep(null);
    if (stream.turnId === null && !this.#text.value) this.#text.value = stream.message;
  }

  async #over(stream, view, words) {
    const wasCurrent = this.#stream === stream;
    if (words !== null) await view.finish(words);
    if (!wasCurrent) return;
    this.#keep(null);
    this.#stream = null;
    this.#conversation.removeAttribute("aria-busy");
    this.#button("stop").hidden = true;
    this.#button("send").disabled = false;
    if (document.activeElement === document.body) this.#text.focus({ preventScroll: true });
    await this.#showSessions();
  }

  async #stop() {
    const stream = this.#stream;
    if (!stream) return;
    if (stream.turnId === null) {
      this.#stopWanted = true;
      return this.#say("It is stopped as soon as the agent has the message.");
    }
    this.#say("Stopping...");
    await this.#try(() => stream.cancel());
  }

  #decide(stream, id, decision) {
    return this.#try(() => stream.confirm(id, decision));
  }

  #view(article, stream) {
    return new TurnView(article, (id, decision) => this.#decide(stream, id, decision));
  }

  /** Do it and tell what went wrong; true when nothing did. */
  async #try(action) {
    try {
      await action();
      return true;
    } catch (error) {
      const refused = error instanceof Refused;
      this.#say(refused ? `${error.problem.detail} ${error.problem.hint}` : "The server cannot be reached. Try again.");
      return false;
    }
  }

  // The page around it.

  async #showSessions() {
    const query = this.#session ? `?session=${encodeURIComponent(this.#session)}` : "?session=new";
    this.#sessions = htmx.ajax("GET", `${this.page}/sessions${query}`, { target: "#sessions", swap: "morph" });
    await this.#sessions;
  }

  #say(words) {
    const place = this.#root.querySelector("#console-status");
    if (place.textContent !== words) place.textContent = words;
  }

  #button(id) {
    return this.#root.querySelector(`#${id}`);
  }

  /** Follow the growing answer, unless the person has scrolled away from its end. */
  #keepInSight() {
    const end = this.#conversation.lastElementChild?.querySelector(".turn-end");
    if (!end || !this.#stream) return () => {};
    const near = end.getBoundingClientRect().top < innerHeight + SLACK_PX;
    return () => near && end.scrollIntoView({ block: "nearest" });
  }

  #keep(pending) {
    const name = `greylag-pending:${this.page}`;
    if (pending) sessionStorage.setItem(name, JSON.stringify(pending));
    else sessionStorage.removeItem(name);
  }

  #kept() {
    return JSON.parse(sessionStorage.getItem(`greylag-pending:${this.page}`) ?? "null");
  }
}

function format(place) {
  const text = place.textContent;
  place.removeAttribute("data-markdown");
  place.replaceChildren();
  const prose = new Prose(place);
  paint(prose, text);
  paint({ write: () => prose.end() }, "\n");
}

function newId() {
  // Not randomUUID: pages served over plain HTTP to another machine do not have it.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
