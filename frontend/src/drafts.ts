// What a person has written and nobody has taken yet: kept in this browser under a name, whatever happens
// to the page, for that person alone.

import { keep, kept } from "./kept";

const SOON_MS = 500;
const later = new Map<string, () => void>(); // by what is kept: what is to be written yet

function writeAll(): void {
  for (const write of [...later.values()]) write();
}

addEventListener("pagehide", writeAll);
document.addEventListener("visibilitychange", writeAll);

const untaken = new Map<string, string>(); // by storage, which may be forbidden or full

function keyOf(name: string): string {
  const { person } = document.body.dataset;
  return `greylag-draft:${person ? `${person} ` : ""}${name}`;
}

/** One text that is kept; what storage does not take lasts as long as the page. */
export class Draft {
  #key: string;

  constructor(name: string) {
    this.#key = keyOf(name);
  }

  /** Return the names of all that is kept whose names begin so. */
  static names(begin: string): string[] {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(keyOf(begin))).map((key) => key.slice(keyOf("").length));
    } catch {
      return [];
    }
  }

  /** Tell whether an event of storage says that another tab has taken it away. */
  isTakenBy({ key, newValue }: StorageEvent): boolean {
    return key === this.#key && newValue === null;
  }

  read(): string {
    later.get(this.#key)?.();
    return untaken.get(this.#key) ?? kept(this.#key) ?? "";
  }

  /** Keep what `text` then returns, soon, once for many calls: at the latest when the page is left or this is read. */
  keepSoon(text: () => string): void {
    const waits = later.has(this.#key);
    later.set(this.#key, () => this.keep(text()));
    if (!waits) setTimeout(() => later.get(this.#key)?.(), SOON_MS);
  }

  keep(text: string): void {
    later.delete(this.#key);
    untaken.delete(this.#key);
    if (!keep(this.#key, text || null)) untaken.set(this.#key, text);
  }
}
