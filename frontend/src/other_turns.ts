// Turns of the session that began elsewhere: in another tab, by another person or program.
import { Backoff, Refused, wordsOf } from "./sse";
import type { TurnState } from "./turn_stream";

/** What they need of the conversation. */
interface Conversation {
  session(): string | null;
  isAsleep(): boolean;
  shows(turn: TurnState): boolean;
  /** Show it after those that are shown; what it throws is told, and tried again where that may help. */
  show(turn: TurnState): Promise<void>;
  say(words: string): void;
  left: AbortSignal;
}

/** Brings them into the conversation, one after the other. */
export class OtherTurns {
  #of: Conversation;
  #all: TurnState[] | null = null; // those of the project that the live stream tells of
  #coming = new Set<string>(); // that are about to be shown, or cannot be
  #bringing: Promise<void> | null = null;

  constructor(of: Conversation) {
    this.#of = of;
  }

  isComing(turn: string): boolean {
    return this.#coming.has(turn);
  }

  /** Take what the live stream tells of the project's turns. */
  take(told: TurnState[]): void {
    if (!told.length) {
      this.#all ??= []; // whatever comes is news
      return; // it may only not be known how they stand now
    }
    // What no follower here will tell of; what ended before this page is no news.
    const known = new Map((this.#all ?? told).map((turn) => [turn.turn_id, turn.state]));
    const ended = told.some((turn) => turn.state === "ended" && known.get(turn.turn_id) !== "ended" && !this.#of.shows(turn));
    this.#all = told;
    if (ended) document.dispatchEvent(new Event("greylag:turn-ended"));
    void this.bring();
  }

  /** Show a turn of which the live stream may not have told yet. */
  add(turn: TurnState): Promise<void> {
    if (!this.#all?.some((one) => one.turn_id === turn.turn_id)) this.#all = [...(this.#all ?? []), turn];
    return this.bring();
  }

  /** Show what is not shown yet. */
  bring(): Promise<void> {
    this.#bringing ??= this.#bringAll().finally(() => {
      this.#bringing = null;
    });
    return this.#bringing;
  }

  async #bringAll(): Promise<void> {
    const { left } = this.#of;
    const backoff = new Backoff();
    let failed = false;
    for (let turn = this.#next; turn && !left.aborted; turn = this.#next) {
      this.#coming.add(turn.turn_id);
      try {
        await this.#of.show(turn);
        if (failed) this.#of.say("");
        failed = false;
      } catch (error) {
        failed = true;
        this.#of.say(wordsOf(error));
        if (error instanceof Refused && !error.passing) continue; // what cannot be shown is passed over
        this.#coming.delete(turn.turn_id);
        await backoff.pause(left);
      }
    }
  }

  get #next(): TurnState | undefined {
    if (this.#of.isAsleep()) return undefined;
    const ours = (this.#all ?? []).filter((turn) => turn.session_id === this.#of.session());
    return ours[ours.findLastIndex((turn) => this.#of.shows(turn)) + 1];
  }
}
