// What a person has sent while the agent was at work: it waits above the composer until the turn ends.

/** The message that waits in one session of this tab. */
export class Queue {
  #box: HTMLElement;
  #name: () => string;
  #back: (words: string) => void;

  /** `name` tells which session it is; `back` is given what is taken back. */
  constructor(form: HTMLElement, name: () => string, back: (words: string) => void) {
    this.#name = name;
    this.#back = back;
    this.#box = document.createElement("div");
    this.#box.className = "queued";
    this.#box.hidden = true;
    this.#box.setAttribute("role", "status");
    this.#box.innerHTML = '<p><strong>Next:</strong> <span dir="auto"></span></p><button class="btn btn-small btn-quiet" type="button">Take back</button>';
    this.#box.querySelector("button")!.addEventListener("click", () => this.giveBack());
    form.prepend(this.#box);
  }

  /** Show what waited when the page was left. */
  show(): void {
    const words = this.#read();
    this.#box.querySelector("span")!.textContent = words;
    this.#box.hidden = words === "";
  }

  add(message: string): void {
    this.#keep([this.#read(), message].filter(Boolean).join("\n\n"));
  }

  /** Return what waits, which then waits no more. */
  take(): string {
    const words = this.#read();
    if (words) this.#keep("");
    return words;
  }

  giveBack(): void {
    const words = this.take();
    if (words) this.#back(words);
  }

  get #key(): string {
    return `greylag-queued:${this.#name()}`;
  }

  #read(): string {
    return sessionStorage.getItem(this.#key) ?? "";
  }

  #keep(words: string): void {
    if (words) sessionStorage.setItem(this.#key, words);
    else sessionStorage.removeItem(this.#key);
    this.show();
  }
}
