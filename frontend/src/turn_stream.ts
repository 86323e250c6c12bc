// Follows one turn to its end, through dropped connections: every event once, in order.
import { Rest } from "./doing";
import { Place } from "./places";
import { Backoff, Refused, Silence, type StreamEvent, ask, frames, post } from "./sse";

const PATIENCE_MS = 60_000; // with a server that answers, but not well; a turn that runs, and a network that is away, are waited for

export type Decision = "allow_once" | "allow_session" | "reject_once";

/** A message on its way: its id makes it the same turn however often it is sent. */
export interface Pending {
  message: string;
  messageId: string;
  session: string | null;
  at: number; // when it was sent
}

/** How a turn stands, as the live stream tells of it. */
export interface TurnState {
  turn_id: string;
  session_id: string;
  message_id: string;
  state: "working" | "asks" | "ended";
}

/** What a turn's follower is told, and asked. */
export interface Handlers {
  state(): TurnState["state"];
  runs(): boolean;
  opened(): void;
  lost(why: Refused | null): void;
  waking(content: Record<string, any>): void;
  event(type: string, content: Record<string, any>): void;
}

type Fate = "goes on" | "ended" | "broken";

/** A message on its way and the turn that answers it; `turnId` is known after the first event. */
export class TurnStream {
  #api: string;
  #last = -1;
  readonly pending: Pending;
  turnId: string | null;

  constructor(api: string, pending: Partial<Pending>, turnId: string | null = null) {
    this.#api = api;
    this.pending = { message: "", messageId: "", session: null, at: 0, ...pending };
    this.turnId = turnId;
  }

  /** Call `handlers` for what happens, until the turn's `complete` event. Throws Refused when the
   * server says no.
   */
  async follow(handlers: Handlers, signal: AbortSignal): Promise<void> {
    const backoff = new Backoff();
    const rest = new Rest(() => this.turnId, handlers.state);
    let refusedSince: number | null = null;
    for (;;) {
      await rest.over();
      const rests = new AbortController();
      const place = new Place(() => this.turnId !== null && rests.abort());
      const taken = place.taken(signal);
      if (this.turnId !== null) await taken; // a message is sent at once
      const silence = new Silence();
      const look = rest.begin(() => rests.abort(), rests.signal);
      let isCut = true;
      let why: Refused | null = null;
      try {
        const response = await this.#open(AbortSignal.any([signal, silence.signal, rests.signal]));
        backoff.opened();
        place.opened();
        handlers.opened();
        let fate: Fate = "goes on";
        for await (const { id, data } of frames(response, () => silence.heard())) {
          fate = this.#take(id, data, handlers);
          if (fate === "ended") return;
          if (fate === "broken") break;
          backoff.reset();
          refusedSince = null;
          look();
        }
        isCut = fate === "broken"; // the server ends each stream once in a while, to be asked again
      } catch (error) {
        if (signal.aborted) return;
        if (rests.signal.aborted) continue;
        if (error instanceof Refused) {
          refusedSince ??= Date.now();
          // A turn goes on, however long nobody can tell of it.
          const goesOn = this.turnId !== null && handlers.runs();
          if (!this.#passes(error) || (!goesOn && Date.now() - refusedSince > PATIENCE_MS)) throw error;
          why = error;
        }
      } finally {
        silence.over();
        rests.abort();
        place.leave();
      }
      if (signal.aborted) return;
      if (isCut) handlers.lost(why);
      await backoff.pause(signal);
    }
  }

  /** Streams there may be only so many of; one that has ended makes room for that of a turn that runs. */
  #passes(error: Refused): boolean {
    return error.passing || (this.turnId !== null && error.status === 429);
  }

  /** Its id is the environment's word: whatever it holds, it leads nowhere else. */
  get #turn(): string {
    return `${this.#api}/turns/${encodeURIComponent(this.turnId ?? "")}`;
  }

  cancel(): Promise<Response> {
    return post(`${this.#turn}/cancel`);
  }

  confirm(id: string, decision: Decision): Promise<Response> {
    return post(`${this.#turn}/confirmations/${encodeURIComponent(id)}`, { decision });
  }

  /** Before the turn is known the message is sent again: its id makes it the same turn. */
  #open(signal: AbortSignal): Promise<Response> {
    if (this.turnId === null) {
      const { message, messageId, session } = this.pending;
      const body = { message, message_id: messageId, ...(session ? { session_id: session } : {}) };
      return post(`${this.#api}/messages`, body, { signal });
    }
    const headers: Record<string, string> = this.#last < 0 ? {} : { "Last-Event-ID": `${this.turnId}-${this.#last}` };
    return ask(`${this.#turn}/events`, { signal, headers });
  }

  #take(id: string | null, { type, content }: StreamEvent, handlers: Handlers): Fate {
    if (id === null) return this.#takeUnnumbered(type, content, handlers);
    const number = Number(id.slice(id.lastIndexOf("-") + 1));
    if (number <= this.#last) return "goes on";
    this.#last = number;
    if (type === "turn") this.turnId = content.turn_id;
    handlers.event(type, content);
    return type === "complete" ? "ended" : "goes on";
  }

  /** Events without an id are the platform's own, not the turn's. Of a turn that is known they tell
   * that the way to it broke.
   */
  #takeUnnumbered(type: string, content: Record<string, any>, handlers: Handlers): Fate {
    if (type === "status") handlers.waking(content);
    else if (this.turnId !== null && (type === "error" || type === "complete")) return "broken";
    else handlers.event(type, content);
    return type === "complete" ? "ended" : "goes on";
  }
}
