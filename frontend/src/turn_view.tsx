// One turn in the page: the message, and below it what the agent says, thinks, does and asks.
import { render } from "preact";
import { FORGOTTEN } from "./changes";
import { type Decide, StepGroup } from "./step_view";
import { type Item, type Step, TurnModel } from "./turn_model";
import { visible } from "./text";
import type { Problem } from "./sse";

const BUDGET_MS = 7; // of a frame, for what has come
const WITHOUT_FRAME_MS = 500;

/** Puts what is drawn in the place of what is shown. */
type Put = (shown: HTMLElement, drawn: HTMLElement) => void;

/** Shows a turn's answer in its article; what has come is shown once per frame, a bounded amount each. */
export class TurnView {
  readonly model = new TurnModel();
  readonly article: HTMLElement;
  #answer: HTMLElement;
  #end: HTMLElement;
  #decide: Decide;
  #put: Put | null;
  #scheduled = false;
  #shown: (() => void)[] = [];

  /** `article` is a turn that the server rendered; `decide` answers a confirmation. With `put` the answer is drawn
   * unseen, and put in its place once it is whole.
   */
  constructor(article: HTMLElement, decide: Decide, put: Put | null = null) {
    this.article = article;
    this.#put = put;
    this.#answer = put ? Object.assign(document.createElement("div"), { className: "coming" }) : this.#shownAnswer;
    this.#end = article.querySelector<HTMLElement>(".turn-end")!;
    this.#decide = decide;
  }

  /** A new turn; `author` is told where there may be several. */
  static create(message: string, decide: Decide, author?: string): TurnView {
    const article = document.createElement("article");
    article.className = "turn";
    article.innerHTML = '<div class="said" dir="auto"></div><div class="answer"></div><p class="turn-end quiet"></p>';
    article.querySelector(".said")!.textContent = visible(message);
    if (author) {
      const by = document.createElement("p");
      by.className = "said-by";
      by.dir = "auto";
      by.textContent = author;
      article.prepend(by);
    }
    return new TurnView(article, decide);
  }

  /** Show an answer that is whole. */
  static async format(article: HTMLElement, text: string, put: Put): Promise<void> {
    const view = new TurnView(article, async () => false, put);
    view.apply("message", { content: text });
    await view.#whole();
  }

  get #shownAnswer(): HTMLElement {
    return this.article.querySelector<HTMLElement>(".answer")!;
  }

  apply(type: string, content: Record<string, any>): void {
    this.model.apply(type, content);
    this.#schedule();
  }

  /** Take away what is shown of the answer, before its events are shown from the first on. */
  clear(): void {
    this.model.clear();
    this.#schedule();
  }

  fail(problem: Problem): void {
    this.model.fail(problem);
    this.#schedule();
  }

  working(words: string): void {
    if (this.#end.textContent !== words) this.#end.textContent = words;
    this.#end.classList.toggle("working", words !== "");
  }

  /** Whether the agent waits for an answer. */
  get asks(): boolean {
    return this.model.items.some((item) => item.kind === "step" && item.state === "asks");
  }

  /** Resolves when all is shown; `words` say how the turn ended, when that is worth words. */
  async finish(words: string): Promise<void> {
    await this.#whole();
    this.working("");
    this.#end.textContent = "forgotten" in this.article.dataset ? `${words} ${FORGOTTEN}`.trim() : words;
    const { outcome, changes } = this.model;
    this.article.dataset.turnStatus = outcome;
    // What the server has told of is newer: it knows of undos.
    if (changes !== undefined) this.article.dataset.changes ??= JSON.stringify(changes);
  }

  async #whole(): Promise<void> {
    this.model.end();
    await this.painted();
    if (!this.#put || !drawn.has(this.#answer)) return;
    await this.painted(); // once more: until then it has no sizes
    const shown = this.#shownAnswer;
    this.#put(shown, this.#answer);
    render(null, shown);
    this.#put = null;
  }

  /** Leave what is shown where it is, of an answer that was to take its place whole; tell whether it was. */
  abandon(): boolean {
    if (!this.#put) return false;
    this.#put = null;
    this.clear();
    this.#answer.remove();
    return true;
  }

  /** Resolves when all that has come stands in the page. */
  painted(): Promise<void> {
    this.#schedule();
    return new Promise((resolve) => this.#shown.push(resolve));
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    // A page that is hidden, also after this, gets no frames, and its streams go on all the same.
    const timer = setTimeout(() => work(), document.visibilityState === "hidden" ? 50 : WITHOUT_FRAME_MS);
    const frame = requestAnimationFrame(() => work());
    const work = () => {
      clearTimeout(timer);
      cancelAnimationFrame(frame);
      this.#work();
    };
  }

  #work(): void {
    this.#scheduled = false;
    const more = this.model.advance(performance.now() + BUDGET_MS);
    this.#render();
    if (more) return this.#schedule();
    for (const resolve of this.#shown.splice(0)) resolve();
  }

  #render(): void {
    if (!drawn.has(this.#answer)) {
      if (!this.model.items.length) return;
      if (this.#put) this.#shownAnswer.after(this.#answer);
      else this.#answer.replaceChildren(); // else what the server has written would stay beside it
      drawn.add(this.#answer);
    }
    render(<Answer model={this.model} decide={this.#decide} />, this.#answer);
  }
}

/** The answers that are drawn here; others are as the server has written them. */
const drawn = new WeakSet<HTMLElement>();

function Answer({ model, decide }: { model: TurnModel; decide: Decide }) {
  return (
    <>
      {grouped(model.items).map((group, index, all) => {
        const over = model.ended || index < all.length - 1;
        if (Array.isArray(group)) return <StepGroup key={index} steps={group} over={over} decide={decide} />;
        return <Piece key={index} item={group} />;
      })}
    </>
  );
}

function grouped(items: Item[]): (Step[] | Exclude<Item, Step>)[] {
  const groups: (Step[] | Exclude<Item, Step>)[] = [];
  for (const item of items) {
    const last = groups.at(-1);
    if (item.kind !== "step") groups.push(item);
    else if (Array.isArray(last)) last.push(item);
    else groups.push([item]);
  }
  return groups;
}

function Piece({ item }: { item: Exclude<Item, Step> }) {
  switch (item.kind) {
    case "words":
      return <div class="prose" dir="auto">{item.stream.blocks}</div>;
    case "thought":
      return <details class="step"><summary><span class="step-title">Thinking</span></summary><p class="thought">{visible(item.text)}</p></details>;
    case "note":
      return <p class="note">{visible(item.text)}</p>;
    case "problem":
      return <ProblemBox problem={item.problem} />;
  }
}

function ProblemBox({ problem }: { problem: Problem }) {
  return (
    <div class="problem" role="group" aria-label="Error">
      <p class="problem-message">{visible(problem.detail || "The request failed.")}</p>
      {problem.hint && <p class="problem-hint">{visible(problem.hint)}</p>}
      {problem.code && <p class="problem-code">{visible(problem.code)}</p>}
    </div>
  );
}
