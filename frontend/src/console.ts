// The conversation of a project's page: its composer, its turns, and what is live around them.
import htmx from "htmx.org/dist/htmx.esm.js";
import { startAttaching } from "./attachments";
import { ChangeLog } from "./changes";
import { Draft } from "./drafts";
import { Facts } from "./facts";
import { projectStatus } from "./panes";
import { leadToQuestion } from "./question_dock";
import { OtherTurns } from "./other_turns";
import { PastTurns } from "./past_turns";
import { Scroller } from "./scroller";
import { Queue, Sent, closedTabs, isFresh, tabName, written } from "./queue";
import { Backoff, Refused, UNREACHED, ask, fragment, isUnreached, post, wordsOf } from "./sse";
import { takeFirst } from "./start";
import { endsMessage, textOr } from "./text";
import { type TurnEnds, showTurnEnd } from "./turn_end";
import { type Decision, type Handlers, type Pending, type TurnState, TurnStream } from "./turn_stream";
import { TurnView } from "./turn_view";

/** What is said below the conversation is of the way to the server, a turn that is being stopped, files that are
 * attached, what somebody has asked for, or the conversation itself.
 */
type About = "way" | "stop" | "files" | "asked" | "turns";

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
  #alsoRunning: [TurnStream, TurnView][] = []; // that began before all of it was shown
  #making: Promise<string> | null = null;
  #waking = document.getElementById("waking")!; // below the message that wakes the environment, else below all
  #stopWanted = false;
  #said = new Map<About, string>(); // what holds, the newest last
  #restored = ""; // the draft that was there before anything was written in this tab
  #learnt = false; // what the agent is, since it has woken
  #ends: TurnEnds;
  #others: OtherTurns;
  #past: PastTurns;
  #queue: Queue;
  #facts: Facts;
  #busyPause = new Backoff();
  #leaving = new AbortController();

  constructor(root: HTMLElement) {
    this.#root = root;
    this.#form = root.querySelector<HTMLFormElement>("#composer")!;
    this.#text = root.querySelector<HTMLTextAreaElement>("#message")!;
    this.#api = root.dataset.api!;
    this.#page = root.dataset.page!;
    const place = root.querySelector<HTMLElement>("#scroller")!;
    this.#ends = {
      log: new ChangeLog(this.#api),
      mayWrite: root.dataset.writes === "true",
      session: () => this.#session,
      send: (message) => this.#sendAnew(message),
      edit: (message) => {
        this.#giveBack(message);
        this.#text.focus();
      },
    };
    this.#facts = new Facts({
      api: this.#api,
      mayWrite: !this.#text.disabled,
      told: () => this.#conversation.dataset,
      session: () => this.#madeSession(),
      say: (words) => this.#say("asked", words),
    });
    this.#others = new OtherTurns({
      session: () => this.#session,
      isAsleep: () => this.#conversation.dataset.asleep !== "false",
      shows: (turn) => this.#shows(turn),
      show: (turn) => this.#showOther(turn),
      say: (words) => this.#say("turns", words),
      left: this.#leaving.signal,
    });
    this.#queue = new Queue(this.#form, () => this.#placeOf(this.#session), (words) => this.#giveBack(words));
    this.#scroller = new Scroller(place, place.querySelector<HTMLElement>("#scrolled")!, this.#button("to-end"));
    this.#past = new PastTurns({
      root,
      scroller: this.#scroller,
      ends: this.#ends,
      replay: (article) => this.#replay(article, false),
      attempt: (action) => this.#try("asked", action),
    });
  }

  start(): void {
    if (this.#leadToOwn()) return;
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
    startAttaching(this.#form, this.#api, (words) => this.#say("files", words));
    addEventListener("storage", (event) => this.#draft.isTakenBy(event) && this.#keepOwn(event.oldValue ?? ""));
    addEventListener("pagehide", () => this.#leaving.abort());
    addEventListener("pageshow", (event) => event.persisted && location.reload());
    document.addEventListener("greylag:changed", () => void this.#wakeUp());
    // Of what nobody has asked for nobody needs to know any more.
    document.addEventListener("greylag:live", () => this.#said.get("turns") === UNREACHED && this.#say("turns", ""));
    document.addEventListener("greylag:turns", (event) => {
      this.#others.take((event as CustomEvent<TurnState[]>).detail);
    });
    this.#restored = this.#draft.read();
    this.#text.value ||= this.#restored;
    // Until now the form is a plain one: Enter began a new line in it.
    this.#form.dataset.ready = "";
    this.#readPage();
    this.#scroller.follow();
    const first = takeFirst();
    if (first) this.#sendAnew(first);
  }

  get #conversation(): HTMLElement {
    return this.#root.querySelector<HTMLElement>("#conversation")!;
  }

  get #session(): string | null {
    return this.#conversation.dataset.session || null;
  }

  get #draft(): Draft {
    return new Draft(this.#nameOf(this.#session));
  }

  #nameOf(session: string | null): string {
    return `${this.#page}?${session ?? "new"}`;
  }

  /** What has no session yet is this tab's: each makes one of its own. */
  #placeOf(session: string | null, tab: string = tabName()): string {
    return this.#nameOf(session ?? `new ${tab}`);
  }

  /** Have a page that names no session, and was given the newest, show the one that this tab has sent a first message to
   * begin with; tell whether it leads there.
   */
  #leadToOwn(): boolean {
    const sent = this.#sentIn(null);
    const known = this.#known;
    for (const pending of sent.all) if (known.has(pending.messageId)) sent.forget(pending);
    const leads = this.#session !== null && !new URLSearchParams(location.search).has("session") && sent.all.some(isFresh);
    if (leads) location.replace(`${this.#page}?session=new`);
    return leads;
  }

  /** The ids of the messages that are shown. */
  get #known(): Set<string | undefined> {
    return new Set([...this.#conversation.querySelectorAll<HTMLElement>("[data-message-id]")].map((one) => one.dataset.messageId));
  }

  /** Go on with what a tab that was closed had sent to begin a session with. */
  async #takeOver(): Promise<void> {
    for (const tab of this.#session ? [] : await closedTabs(this.#page)) {
      if (this.#session) return; // made meanwhile: the next page that has none goes on with it
      const place = this.#placeOf(null, tab);
      this.#sentIn(null).takeFrom(new Sent(place));
      this.#queue.takeFrom(place);
      this.#sendPending();
      this.#sendQueued();
    }
  }

  #sentIn(session: string | null): Sent {
    return new Sent(this.#placeOf(session));
  }

  /** What another tab of the session has sent or deleted was its own: another text that was written here is
   * kept. One that was only restored here may be what the other tab has gone on with.
   */
  #keepOwn(taken: string): void {
    const { value } = this.#text;
    if (value !== taken && value !== this.#restored) return this.#draft.keep(value);
    const sent = [...this.#sentIn(this.#session).all, this.#queue.waiting].some((one) => one?.message.endsWith(taken));
    if (sent && taken.startsWith(value)) this.#text.value = "";
  }

  #sendOnEnter(event: KeyboardEvent): void {
    if (!endsMessage(event)) return;
    event.preventDefault();
    if (event.repeat) return; // a key that is held down
    // With nothing to send it leads to what the agent asks; once more, there, it allows that.
    if (this.#text.value.trim() || !leadToQuestion()) this.#form.requestSubmit();
  }

  // What the server has rendered.

  #readPage(): void {
    this.#facts.show();
    const turns = [...this.#conversation.querySelectorAll<HTMLElement>(".turn")];
    this.#past.dress(turns.slice(0, -1));
    const newest = turns.at(-1);
    if (newest?.dataset.turn) {
      const told = this.#replay(newest, newest.dataset.turnStatus === "running");
      void told.then(() => newest.querySelector("[data-markdown]") && this.#past.dress([newest]));
    } else if (newest) this.#past.dress([newest]);
    this.#past.offerEarlier();
    this.#sendPending();
    this.#queue.show();
    if (this.#queue.waiting && !isFresh(this.#queue.waiting)) this.#queue.giveBack();
    this.#sendQueued();
    void this.#others.bring();
    void this.#takeOver();
  }

  /** Return the conversation as the server tells it now. */
  async #told(query: string): Promise<HTMLElement> {
    const told = (await fragment(`${this.#page}/conversation${query}`)).getElementById("conversation");
    if (!told) throw new Refused(404, {});
    return document.adoptNode(told);
  }

  /** The first message of a page has woken the agent: only now it can be told of. */
  async #learnFacts(): Promise<void> {
    if (this.#learnt || this.#facts.known) return;
    this.#takeFacts(await this.#told(`?session=${encodeURIComponent(this.#session ?? "new")}`));
    this.#learnt = true;
    this.#facts.show();
  }

  #takeFacts(told: HTMLElement): void {
    const { model, mode, fixed } = told.dataset;
    Object.assign(this.#conversation.dataset, { model, mode, fixed });
  }

  /** Return the session, made now, once, where nothing was said yet. */
  #madeSession(): Promise<string> {
    if (this.#session) return Promise.resolve(this.#session);
    this.#making ??= this.#makeSession().finally(() => {
      this.#making = null;
    });
    return this.#making;
  }

  async #makeSession(): Promise<string> {
    const begins = new Refused(409, { detail: "The session is only beginning: choose once the agent answers." });
    if (this.#stream) throw begins;
    const { session_id } = await (await post(`${this.#api}/sessions`)).json();
    if (this.#stream) throw begins;
    this.#adopt(session_id);
    return session_id;
  }

  #replay(article: HTMLElement, running: boolean): Promise<void> {
    const stream = new TurnStream(this.#api, { session: this.#session }, article.dataset.turn);
    const decide = (id: string, decision: Decision) => this.#decide(stream, id, decision);
    const view = new TurnView(article, decide, running ? null : this.#scroller.put);
    if (running) this.#join(stream, view);
    return this.#follow(stream, view, true);
  }

  /** Once the environment has woken, put what it tells itself in the place of the copy that was kept of it. */
  async #wakeUp(): Promise<void> {
    const here = this.#conversation;
    if (!this.#stream && !here.lastElementChild?.contains(this.#waking)) here.after(this.#waking);
    if (projectStatus() !== "active" || here.dataset.asleep !== "true") return;
    if (this.#stream && !this.#session) return; // the turn that wakes it makes its session
    // Turns that the live stream tells of come after those that are told now: not before these are there.
    here.dataset.asleep = "waking";
    const query = this.#session ? `?session=${encodeURIComponent(this.#session)}` : location.search;
    const found = await this.#try("turns", async () => {
      const told = await this.#told(query);
      // What is not known yet is no reason to take away what is.
      const unknown = told.dataset.asleep === "true" || told.querySelector(":scope > .problem") !== null;
      here.dataset.asleep = String(unknown);
      if (!unknown || !here.querySelector(".turn")) this.#putAwake(here, told);
    });
    if (!found) here.dataset.asleep = "true"; // the next change tries again
  }

  #putAwake(here: HTMLElement, told: HTMLElement): void {
    for (const turn of told.querySelectorAll<HTMLElement>(".turn[data-turn]")) {
      if (this.#shows({ turn_id: turn.dataset.turn!, message_id: turn.dataset.messageId! })) turn.remove(); // it woke it
    }
    const turns = [...told.querySelectorAll<HTMLElement>(".turn")];
    const goesOn = here.querySelector(".turn:not([data-kept])") !== null;
    if (goesOn) told.querySelector("#conversation-empty")?.remove();
    here.dataset.session ||= told.dataset.session ?? "";
    this.#scroller.keepTurn(() => {
      here.querySelectorAll(":scope > :not(.turn), [data-kept]").forEach((one) => one.remove());
      this.#takeFacts(told);
      here.prepend(...told.childNodes);
      htmx.process(here);
      if (!goesOn) return this.#readPage();
      this.#facts.show();
      const runs = (turn: HTMLElement) => turn.dataset.turnStatus === "running";
      this.#past.dress(turns.filter((turn) => !runs(turn)));
      for (const turn of turns.filter(runs)) void this.#replay(turn, true);
      this.#past.offerEarlier();
      void this.#others.bring();
    });
  }

  // Sending.

  #submit(): void {
    const message = this.#text.value;
    if (!message.trim()) return;
    this.#sendAnew(message);
    this.#text.value = this.#restored = "";
    this.#draft.keep("");
  }

  /** Send a message as a turn of its own, after the one that is under way. */
  #sendAnew(message: string): void {
    this.#say("asked", ""); // what it was asked for before
    const pending = written(message, this.#session);
    if (this.#stream) this.#queue.add(pending);
    else this.#sendNew(pending);
  }

  #sendNew(pending: Pending): void {
    this.#sentIn(pending.session).add(pending);
    this.#send(pending);
  }

  #sendQueued(): void {
    const pending = this.#stream ? null : this.#queue.take();
    if (pending) this.#sendNew(pending);
  }

  #send(pending: Pending): void {
    const stream = new TurnStream(this.#api, pending);
    const view = TurnView.create(pending.message, (id, decision) => this.#decide(stream, id, decision), this.#root.dataset.author);
    this.#root.querySelectorAll("#conversation-empty, #kept-at").forEach((one) => one.remove());
    this.#conversation.append(view.article);
    if (projectStatus() !== "active") view.article.querySelector(".answer")!.before(this.#waking);
    this.#begin(stream, view);
    this.#scroller.follow();
    void this.#follow(stream, view, false);
  }

  /** A page that was left before its message had become a turn sends it again: the same id, the same turn. */
  #sendPending(): void {
    const sent = this.#sentIn(this.#session);
    const known = this.#known;
    for (const pending of sent.all) {
      if (this.#stream?.pending.messageId === pending.messageId) continue;
      const isTurn = known.has(pending.messageId);
      if (!isTurn && !this.#stream && isFresh(pending)) {
        this.#send(pending);
        continue;
      }
      sent.forget(pending);
      if (!isTurn && isFresh(pending)) this.#queue.add(pending);
      else if (!isTurn) this.#giveBack(pending.message);
    }
  }

  /** Have a turn that runs be the one that is under way, at once or after the one that is. */
  #join(stream: TurnStream, view: TurnView): void {
    if (this.#stream) this.#alsoRunning.push([stream, view]);
    else this.#begin(stream, view);
  }

  #begin(stream: TurnStream, view: TurnView): void {
    this.#stream = stream;
    this.#stopWanted = false;
    this.#conversation.setAttribute("aria-busy", "true");
    this.#button("stop").hidden = false;
    this.#tell(view);
  }

  /** Say what the turn is about, here and in the tab's title. */
  #tell(view: TurnView): void {
    const waking = this.#stream?.turnId === null && projectStatus() !== "active";
    view.working(view.asks ? "Waiting for your answer" : waking ? "Activating" : "Working");
    document.dispatchEvent(new CustomEvent("greylag:turn", { detail: view.asks ? "asks" : "working" }));
  }

  async #follow(stream: TurnStream, view: TurnView, clear: boolean): Promise<void> {
    let fresh = clear;
    let ending = "";
    let wakeFailure = "";
    let lost = ""; // what was said of its connection
    const handlers: Handlers = {
      state: () => (view.asks ? "asks" : "working"),
      runs: () => this.#stream === stream || this.#alsoRunning.some(([one]) => one === stream),
      opened: () => {
        lost = "";
        if (this.#stream === stream) this.#say("way", "");
      },
      lost: (why) => {
        const words = isUnreached(why) ? "The connection was lost. Trying again..." : `${why!.message} Trying again...`;
        if (this.#stream !== stream || lost === words) return; // said once: what failed since is not to be said over
        lost = words;
        this.#say("way", words);
      },
      waking: (content) => {
        if (content.status === "error") wakeFailure = String(content.code);
      },
      event: (type, content) => {
        // Why the environment did not wake stands where its waking is shown.
        if (type === "error" && stream.turnId === null && content.code === wakeFailure) return;
        if (fresh) view.clear();
        fresh = false;
        if (type === "turn") this.#begun(stream, view, content);
        if (type === "complete" && content.stop_reason === "cancelled") ending = "Stopped.";
        if (type === "complete") this.#facts.context(content.usage?.totalTokens);
        view.apply(type, content);
        if (this.#stream === stream) this.#tell(view);
      },
    };
    try {
      await stream.follow(handlers, this.#leaving.signal);
    } catch (error) {
      if (error instanceof Refused && error.problem.code === "session_busy") return this.#busy(stream, view);
      this.#refused(stream, view, error);
      if (view.abandon()) fresh = true;
    }
    if (!this.#leaving.signal.aborted) await this.#over(stream, view, fresh ? null : ending);
  }

  #begun(stream: TurnStream, view: TurnView, content: Record<string, any>): void {
    view.article.dataset.turn = content.turn_id;
    if (content.demonstration && !this.#conversation.querySelector(".banner")) {
      view.apply("status", { message: content.demonstration });
    }
    this.#sentIn(stream.pending.session).forget(stream.pending);
    this.#busyPause.reset();
    if (this.#stream !== stream) return;
    if (content.session_id !== this.#session) this.#adopt(content.session_id);
    if (this.#stopWanted) void this.#stop();
  }

  /** A first message has made its session: from now on this page is that session's. */
  #adopt(session: string): void {
    const typed = this.#text.value;
    const waiting = this.#queue.take();
    if (this.#draft.read() === typed) this.#draft.keep(""); // else it is another tab's, which has no session yet
    this.#conversation.dataset.session = session;
    this.#draft.keep(typed);
    if (waiting) this.#queue.add({ ...waiting, session });
    this.#queue.show();
    this.#conversation.dataset.asleep = "false"; // nothing was said in it before
    (this.#form.elements.namedItem("session") as HTMLInputElement).value = session;
    history.replaceState(null, "", `${this.#page}?session=${encodeURIComponent(session)}`);
    document.dispatchEvent(new Event("greylag:session"));
  }

  /** Somebody else's turn came first: it is shown, and the message waits for its end. */
  async #busy(stream: TurnStream, view: TurnView): Promise<void> {
    if (view.article.contains(this.#waking)) this.#conversation.after(this.#waking);
    view.article.remove();
    // Before what was sent after it; and with another id, as it may be another message then.
    this.#queue.add(written(stream.pending.message, this.#session), "before");
    this.#sentIn(stream.pending.session).forget(stream.pending);
    this.#rest();
    let shown: HTMLElement | null = null;
    await this.#try("turns", async () => {
      const listed = await ask(`${this.#api}/sessions/${encodeURIComponent(this.#session!)}/turns?limit=1`);
      const [newest] = (await listed.json()).turns;
      if (newest?.status !== "running") return;
      shown = this.#conversation.querySelector(`[data-turn="${CSS.escape(newest.turn_id)}"]`);
      if (!shown) await this.#others.add({ ...newest, state: "working" });
    });
    if (!this.#stream) await this.#busyPause.pause(this.#leaving.signal);
    if (this.#leaving.signal.aborted) return;
    if (shown && !this.#stream) void this.#replay(shown, true); // its stream had been refused
    this.#sendQueued();
  }

  #shows({ turn_id, message_id }: Pick<TurnState, "turn_id" | "message_id">): boolean {
    const known = `:is([data-turn="${CSS.escape(turn_id)}"], [data-message-id="${CSS.escape(message_id)}"]):not([data-kept])`;
    return this.#others.isComing(turn_id) || this.#stream?.pending.messageId === message_id || this.#conversation.querySelector(known) !== null;
  }

  async #showOther(turn: TurnState): Promise<void> {
    const stream = new TurnStream(this.#api, { session: turn.session_id, messageId: turn.message_id }, turn.turn_id);
    const session = this.#session;
    const { message } = await this.#ends.log.turn(turn.turn_id);
    if (session !== this.#session) return;
    const view = TurnView.create(textOr(message), (id, decision) => this.#decide(stream, id, decision));
    view.article.dataset.turn = turn.turn_id;
    this.#root.querySelector("#conversation-empty")?.remove();
    this.#conversation.append(view.article);
    if (turn.state !== "ended") this.#join(stream, view);
    void this.#follow(stream, view, false);
  }

  #refused(stream: TurnStream, view: TurnView, error: unknown): void {
    if (!(error instanceof Refused)) throw error;
    if (this.#stream !== stream) return this.#say("asked", wordsOf(error));
    view.fail({ ...error.problem, detail: isUnreached(error) ? wordsOf(error) : error.message });
  }

  async #over(stream: TurnStream, view: TurnView, words: string | null): Promise<void> {
    this.#alsoRunning = this.#alsoRunning.filter(([one]) => one !== stream);
    if (words !== null) await view.finish(words);
    showTurnEnd(view.article, this.#ends);
    if (this.#stream !== stream) return;
    if (words === null) view.working("");
    // What did not become a turn comes back, before what was sent and typed since.
    if (stream.turnId === null) {
      this.#queue.giveBack();
      this.#giveBack(stream.pending.message);
    }
    this.#sentIn(stream.pending.session).forget(stream.pending);
    const stopped = this.#stopWanted;
    this.#rest();
    document.dispatchEvent(new Event("greylag:turn-ended"));
    if (stream.turnId !== null) void this.#try("turns", () => this.#learnFacts());
    if (document.activeElement === document.body) this.#text.focus({ preventScroll: true });
    if (stopped) this.#queue.giveBack();
    else this.#sendQueued();
  }

  /** The turn that was under way is no more: one that has begun meanwhile is, if there is one. */
  #rest(): void {
    this.#stream = null;
    this.#say("way", "");
    this.#say("stop", "");
    const next = this.#alsoRunning.shift();
    if (next) return this.#begin(...next);
    this.#conversation.removeAttribute("aria-busy");
    this.#button("stop").hidden = true;
    document.dispatchEvent(new CustomEvent("greylag:turn", { detail: "" }));
  }

  #giveBack(message: string): void {
    this.#text.value = [message, this.#text.value].filter(Boolean).join("\n\n");
    this.#draft.keep(this.#text.value);
  }

  async #stop(): Promise<void> {
    const stream = this.#stream;
    if (!stream) return;
    this.#stopWanted = true;
    this.#queue.giveBack(); // at once: other tabs would send it
    if (stream.turnId === null) {
      return this.#say("stop", "It is stopped as soon as the agent has the message.");
    }
    await this.#try("stop", () => {
      this.#say("stop", "Stopping...");
      return stream.cancel();
    });
  }

  #decide(stream: TurnStream, id: string, decision: Decision): Promise<boolean> {
    return this.#try("asked", () => stream.confirm(id, decision));
  }

  /** Do it and tell what went wrong; true when nothing did. */
  async #try(about: About, action: () => Promise<unknown>): Promise<boolean> {
    this.#say(about, "");
    try {
      await action();
      return true;
    } catch (error) {
      this.#say(about, wordsOf(error));
      return false;
    }
  }

  // The page around it.

  /** Say this until it is taken back, by "" or other words about the same: the newest of what holds is shown. */
  #say(about: About, words: string): void {
    this.#said.delete(about);
    if (words) this.#said.set(about, words);
    const newest = [...this.#said.values()].at(-1) ?? "";
    const place = this.#root.querySelector("#console-status")!;
    if (place.textContent !== newest) place.textContent = newest;
  }

  #button(id: string): HTMLButtonElement {
    return this.#root.querySelector<HTMLButtonElement>(`#${id}`)!;
  }
}
