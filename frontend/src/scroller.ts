// The conversation's scroller. Whether it follows what grows is a flag that only the person clears: by wheel,
// touch, keys, the scroll bar, or by what moves the view up by more than there is less to scroll, which
// nothing does by itself (what a browser finds in the page, the focus, a selection that is drawn). It is
// never read off where the view stands, which changes by itself.
import { Words } from "./same_words";

const AT_END_PX = 8;
const AWAY = new Set(["ArrowUp", "PageUp", "Home"]);

export class Scroller {
  #place: HTMLElement;
  #pill: HTMLElement;
  #following = true;
  #dragging = false;
  #last = { top: 0, height: 0, shown: 0 };

  /** `place` scrolls `content`; `pill` is the button that leads to the end. */
  constructor(place: HTMLElement, content: HTMLElement, pill: HTMLElement) {
    this.#place = place;
    this.#pill = pill;
    const leave = () => this.#leave();
    place.addEventListener("wheel", (event) => event.deltaY < 0 && leave(), { passive: true });
    place.addEventListener("touchmove", leave, { passive: true });
    place.addEventListener("touchend", () => { this.#following ||= this.#isAtEnd; }, { passive: true });
    place.addEventListener("keydown", (event) => AWAY.has(event.key) && leave());
    place.addEventListener("pointerdown", (event) => { this.#dragging = event.target === place; });
    addEventListener("pointerup", () => { this.#dragging = false; });
    place.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    pill.addEventListener("click", () => {
      this.follow();
      place.focus({ preventScroll: true }); // the button goes
    });
    // Told after layout and before paint, in each frame in which something has grown.
    const grown = new ResizeObserver(() => this.#pin());
    grown.observe(content);
    grown.observe(place);
  }

  /** Show the end, and go on showing it. */
  follow(): void {
    this.#following = true;
    this.#pin();
  }

  /** Let `change` put something above what is seen, which stays where it is. */
  keepInPlace(change: () => void): void {
    this.#leave();
    const fromEnd = this.#place.scrollHeight - this.#place.scrollTop;
    change();
    this.#place.scrollTop = this.#place.scrollHeight - fromEnd;
  }

  /** Let `change` put the same turns anew; the one that is at the top stays there, or, to one who follows, the end. */
  keepTurn(change: () => void): void {
    const turns = () => [...this.#place.querySelectorAll(".turn")].map((one) => one.getBoundingClientRect()).reverse();
    const before = turns();
    const top = before.findLastIndex(({ bottom }) => bottom > this.#place.getBoundingClientRect().top);
    change();
    this.#place.scrollTop += (turns()[top]?.top ?? 0) - (before[top]?.top ?? 0);
    this.#pin();
  }

  /** Put `drawn` in the place of `shown`, beside which it stands unseen and which says the same: who reads there goes on
   * with the same words.
   */
  readonly put = (shown: HTMLElement, drawn: HTMLElement): void => {
    const change = () => {
      drawn.className = shown.className;
      shown.remove();
    };
    if (this.#following) return change();
    const { top } = this.#place.getBoundingClientRect();
    const before = shown.getBoundingClientRect();
    if (before.top >= top) return change();
    const words = before.bottom > top ? Words.at(shown, before.left + 2, top + 1) : null;
    const same = words?.sameIn(drawn);
    const moved = same && same.top - drawn.getBoundingClientRect().top - (words!.top - before.top);
    const { scrollTop } = this.#place;
    change();
    this.#place.scrollTop = scrollTop + (moved ?? drawn.getBoundingClientRect().height - before.height);
  };

  #leave(): void {
    if (this.#place.scrollHeight > this.#place.clientHeight) this.#following = false;
  }

  #scrolled(): void {
    const { top, height, shown } = this.#last;
    const now = this.#now;
    const moved = now.top - top;
    const less = Math.max(0, height - now.height) + Math.max(0, now.shown - shown);
    if (this.#dragging || moved < -1 - less) this.#leave();
    // A way back to the end ends there; the first pixels of a way up do not count as one.
    if (moved > 0 && this.#isAtEnd) this.#following = true;
    this.#last = now;
    this.#offer();
  }

  #pin(): void {
    if (this.#following) {
      this.#place.scrollTop = this.#place.scrollHeight;
      this.#last = this.#now;
    }
    this.#offer();
  }

  get #now(): { top: number; height: number; shown: number } {
    const { scrollTop, scrollHeight, clientHeight } = this.#place;
    return { top: scrollTop, height: scrollHeight, shown: clientHeight };
  }

  #offer(): void {
    // What follows the end is not also held by what changes above it.
    const anchor = this.#following ? "none" : "";
    if (this.#place.style.overflowAnchor !== anchor) this.#place.style.overflowAnchor = anchor;
    this.#pill.hidden = this.#following || this.#isAtEnd;
  }

  get #isAtEnd(): boolean {
    return this.#place.scrollHeight - this.#place.clientHeight - this.#place.scrollTop <= AT_END_PX;
  }
}
