// Follows one turn to its end, through dropped connections: every event once, in order.
import { Backoff, Refused, ask, frames, post } from "./sse.js";

const PATIENCE_MS = 60_000; // with a server that answers, but not well; a network that is away is waited for

/** A message on its way and the turn that answers it; `turnId` is known after the first event. */
export class TurnStream {
  #api;
  #last = -1;

  constructor(api, { message = "", messageId = "", session = null, turnId = null }) {
    this.#api = api;
    this.message = message;
    this.messageId = messageId;
    this.session = session;
    this.turnId = turnId;
  }

  /** Call `handlers` for what happens, until the turn's `complete` event. Throws Refused when the
   * server says no: `event(type, content)`, `waking(content)`, `opened(fromStart)`, `lost()`.
   */
  async follow(handlers, signal) {
    const backoff = new Backoff();
    let refusedSince = null;
    for (;;) {
      try {
        const response = await this.#open(signal);
        handlers.opened();
        for await (const { id, data } of frames(response)) {
          backoff.reset();
          refusedSince = null;
          const fate = this.#take(id, data, handlers);
          if (fate === "ended") return;
          if (fate === "broken") break;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refused) {
          refusedSince ??= Date.now();
          if (!error.passing || Date.now() - refusedSince > PATIENCE_MS) throw error;
        }
      }
      if (signal.aborted) return;
      handlers.lost();
      await backoff.pause(signal);
    }
  }

  cancel() {
    return post(`${this.#api}/turns/${this.turnId}/cancel`);
  }

  confirm(id, decision) {
    return post(`${this.#api}/turns/${this.turnId}/confirmations/${encodeURIComponent(id)}`, { decision });
  }

  /** Before the turn is known the message is sent again: its id makes it the same turn. */
  #open(signal) {
    if (this.turnId === null) {
      const body = { message: this.message, message_id: this.messageId };
      if (this.session) body.session_id = this.session;
      return post(`${this.#api}/messages`, body, { signal });
    }
    const headers = this.#last < 0 ? {} : { "Last-Event-ID": `${this.turnId}-${this.#last}` };
    return ask(`${this.#api}/turns/${this.turnId}/events`, { signal, headers });
  }

  #take(id, { type, content }, handlers) {
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
  #takeUnnumbered(type, content, handlers) {
    if (type === "status") handlers.waking(content);
    else if (this.turnId !== null && (type === "error" || type === "complete")) return "broken";
    else handlers.event(type, content);
    return type === "complete" ? "ended" : "goes on";
  }
}
