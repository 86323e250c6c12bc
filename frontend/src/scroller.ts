// The conversation's scroller. Whether it follows what grows is a flag that only the person clears, by
// wheel, touch, keys or the scroll bar; never something read off the geometry, which changes by itself.
const AT_END_PX = 8;
const AWAY = new Set(["ArrowUp", "PageUp", "Home"]);

export class Scroller {
  #place: HTMLElement;
  #pill: HTMLElement;
  #following = true;
  #dragging = false;
  #last = 0;

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
    pill.addEventListener("click", () => this.follow());
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

  #leave(): void {
    if (this.#place.scrollHeight > this.#place.clientHeight) this.#following = false;
  }

  #scrolled(): void {
    if (this.#dragging) this.#leave();
    // A way back to the end ends there; the first pixels of a way up do not count as one.
    if (this.#place.scrollTop > this.#last && this.#isAtEnd) this.#following = true;
    this.#last = this.#place.scrollTop;
    this.#offer();
  }

  #pin(): void {
    if (this.#following) this.#place.scrollTop = this.#place.scrollHeight;
    this.#offer();
  }

  get #isAtEnd(): boolean {
    return this.#place.scrollHeight - this.#place.clientHeight - this.#place.scrollTop <= AT_END_PX;
  }

  #offer(): void {
    this.#pill.hidden = this.#following || this.#isAtEnd;
  }
}
