// Which turns run, as the pages of one browser tell each other. Over HTTP/1.1 it opens six connections to a host for all of
// them: one that nobody looks at lets its turn's stream go while another, which is live, says that the turn still stands so.
import { SILENCE_MS, Silence } from "./sse";

/** The turns that run, by their ids, with their states. */
export type Doing = Record<string, string>;

// Of one user at one site: what a live page tells is of all of that user's turns, and of nobody else's.
const channel = new BroadcastChannel(`greylag-doing ${location.pathname.split("/projects")[0]}`);
const news = new EventTarget();
let told: Doing | null = {}; // by other pages; null: one has become live, and is about to tell
let silence = new Silence(); // whoever tells may be closed, or have died
let heededAt = -Infinity;

channel.addEventListener("message", ({ data }) => {
  if (data.rests) heededAt = performance.now();
  else take(data.live ? null : data.doing);
  if (data.live) news.dispatchEvent(new Event("live"));
});
document.addEventListener("visibilitychange", () => news.dispatchEvent(new Event("doing")));

function take(doing: Doing | null): void {
  silence.over();
  silence = new Silence();
  silence.signal.addEventListener("abort", () => take({}));
  told = doing;
  news.dispatchEvent(new Event("doing"));
}

/** Tell the other pages; again with each sign of life of who says so. */
export function tellDoing(doing: Doing): void {
  channel.postMessage({ doing });
}

/** Tell the other pages that this one is live from now on. */
export function tellLive(): void {
  take({}); // what the one before told is as old as that
  channel.postMessage({ live: true });
}

/** Call `over` whenever another page has become live. */
export function onOtherLive(over: () => void): void {
  news.addEventListener("live", over);
}

/** Tell whether another page has lately left a turn to what this one tells. */
export function isHeeded(): boolean {
  return performance.now() - heededAt < SILENCE_MS;
}

/** One turn, whose stream its page may let go for a while. */
export class Rest {
  #turn: () => string | null;
  #state: () => string;

  /** `turn` is its id once it is known; `state` is how it stands, as far as the page knows. */
  constructor(turn: () => string | null, state: () => string) {
    this.#turn = turn;
    this.#state = state;
  }

  get #may(): boolean {
    const turn = this.#turn();
    if (turn === null || document.visibilityState === "visible") return false;
    return told === null || (Object.hasOwn(told, turn) && told[turn] === this.#state());
  }

  /** Call `let go` now or as soon as it may be; return what is to be called when its state has changed. */
  begin(letGo: () => void, until: AbortSignal): () => void {
    const look = () => this.#may && letGo();
    news.addEventListener("doing", look, { signal: until });
    return look;
  }

  /** Wait until its stream is needed. */
  async over(): Promise<void> {
    while (this.#may) {
      channel.postMessage({ rests: true });
      await new Promise((done) => news.addEventListener("doing", done, { once: true }));
    }
  }
}
