// The places for streams, which all windows of one browser share: over HTTP/1.1 it opens six connections to a host, and
// while streams hold them all nothing else that is asked of it gets there. Where none is free one that has its place for
// a while gives it up, and waits for another itself: what a stream missed it is told afterwards.

const PLACES = ["0", "1", "2", "3"].map((number) => `greylag-place-${number}`);
// How long a place is held at least; of the window that a person works in it is given up seldom.
const LEAST_MS = 2_000;
const FOCUSED_MS = 20_000;
const OPENING_MS = 10_000; // what is not answered yet has got nowhere, and would have to begin anew
const LONGEST_MS = 30_000; // whoever holds a place and does not heed, as a page that stands still, may do so for ever
const AGAIN_MS = 1_000;
const SOON_MS = 50; // one that is free has been taken then
const APART_MS = 200; // of several that may give theirs up one does

const channel = new BroadcastChannel("greylag-places");
const held = new Set<Place>();

channel.addEventListener("message", ({ data }) => heed(data));

/** Tell every page, this one too, that a place is `wanted`, or that one has become free. */
function tell(wanted: boolean): void {
  channel.postMessage(wanted);
  heed(wanted);
}

function heed(wanted: boolean): void {
  for (const place of held) place.heed(wanted);
}

/** HTTP/2 carries any number of streams; and a browser shares no locks at a plain address of another machine. */
function areFew(): boolean {
  const [page] = performance.getEntriesByType("navigation") as PerformanceNavigationTiming[];
  return page?.nextHopProtocol === "http/1.1" && Boolean(navigator.locks);
}

/** A place for one stream. */
export class Place {
  #left = new AbortController();
  #heldAt = 0;
  #isOpen = false;
  #giving: ReturnType<typeof setTimeout> | undefined;

  /** `giveUp` is called when it is another's turn: the stream is to end, and then to `leave`. */
  constructor(private giveUp: () => void) {}

  /** Return once it is taken, nobody waits for it any more, or none becomes free for long. */
  async taken(until: AbortSignal): Promise<void> {
    if (!areFew()) return;
    const found = new AbortController();
    const signal = AbortSignal.any([until, this.#left.signal, found.signal]);
    const asking = [
      setTimeout(() => tell(true), SOON_MS),
      setInterval(() => tell(true), AGAIN_MS),
      setTimeout(() => found.abort(), LONGEST_MS),
    ];
    await new Promise<void>((done) => {
      const hold = () => {
        if (signal.aborted) return;
        found.abort();
        return this.#hold();
      };
      signal.addEventListener("abort", () => done());
      for (const name of PLACES) navigator.locks.request(name, { signal }, hold).catch(() => done());
    });
    asking.forEach(clearTimeout);
  }

  /** The stream has begun to tell. */
  opened(): void {
    if (this.#isOpen) return;
    this.#isOpen = true;
    this.#heldAt = performance.now();
  }

  leave(): void {
    this.#left.abort();
  }

  heed(wanted: boolean): void {
    clearTimeout(this.#giving);
    if (!wanted) return;
    const isSeen = document.visibilityState === "visible";
    const least = isSeen && document.hasFocus() ? FOCUSED_MS : this.#isOpen ? LEAST_MS : OPENING_MS;
    const wait = this.#heldAt + least - performance.now();
    if (wait <= 0 && !isSeen) return this.giveUp(); // a browser may let timers of what nobody sees wait for a minute
    this.#giving = setTimeout(this.giveUp, Math.max(0, wait) + Math.random() * APART_MS);
  }

  #hold(): Promise<void> {
    this.#heldAt = performance.now();
    held.add(this);
    return new Promise((leave) => {
      this.#left.signal.addEventListener("abort", () => {
        held.delete(this);
        clearTimeout(this.#giving);
        leave();
        tell(false);
      });
    });
  }
}
