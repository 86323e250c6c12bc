// Turns that the server has rendered: their answers formatted, their steps once they are asked for, and earlier ones.
import type { Scroller } from "./scroller";
import { Refused, fragment } from "./sse";
import { type TurnEnds, showTurnEnd } from "./turn_end";
import { TurnView } from "./turn_view";

/** What they need of the conversation. */
interface Conversation {
  root: HTMLElement;
  scroller: Scroller;
  ends: TurnEnds;
  /** Show a turn from its first event on. */
  replay(article: HTMLElement): Promise<void>;
  /** Do it and tell what went wrong. */
  attempt(action: () => Promise<unknown>): Promise<boolean>;
}

export class PastTurns {
  #of: Conversation;

  constructor(of: Conversation) {
    this.#of = of;
  }

  /** Format the answers of turns, and put below them what may be done with them. */
  dress(turns: HTMLElement[]): void {
    for (const article of turns) {
      const text = article.querySelector("[data-markdown]")?.textContent;
      if (text) void TurnView.format(article, text, this.#of.scroller.put);
      if (article.dataset.turn) this.#offerSteps(article);
      showTurnEnd(article, this.#of.ends);
    }
  }

  #offerSteps(article: HTMLElement): void {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "btn-text";
    button.textContent = "Show the steps";
    button.addEventListener("click", async () => {
      if (button.ariaDisabled) return;
      button.ariaDisabled = "true";
      const isAt = document.activeElement === button;
      await this.#of.replay(article);
      button.ariaDisabled = null;
      // It goes when they are there.
      if (isAt && document.activeElement === document.body) article.querySelector<HTMLElement>(".step > summary, .turn-line button")?.focus({ preventScroll: true });
    });
    article.querySelector(".turn-end")!.append(" ", button);
  }

  /** Let earlier messages be put above those that are there, which stay where they are. */
  offerEarlier(): void {
    const link = this.#of.root.querySelector<HTMLAnchorElement>("#earlier a");
    link?.addEventListener("click", async (event) => {
      event.preventDefault();
      await this.#of.attempt(async () => this.#putEarlier(link.parentElement!, await fragment(link.dataset.part!)));
      if (document.activeElement !== document.body) return;
      (this.#of.root.querySelector<HTMLElement>("#earlier a") ?? this.#of.root.querySelector<HTMLElement>("#scroller")!).focus({ preventScroll: true });
    });
  }

  #putEarlier(place: HTMLElement, part: Document): void {
    if (!place.isConnected) return; // pressed twice, or woken meanwhile
    const refused = part.querySelector(".problem-message")?.textContent;
    if (refused) throw new Refused(502, { detail: refused });
    const earlier = [...part.querySelectorAll<HTMLElement>(".turn")];
    const next = part.querySelector("#earlier");
    this.#of.scroller.keepInPlace(() => {
      place.after(...earlier);
      if (next) place.replaceWith(next);
      else place.remove();
      this.dress(earlier);
    });
    this.offerEarlier();
  }
}
