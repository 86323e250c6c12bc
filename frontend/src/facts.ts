// What answers in a session, when it asks, and how much it holds: told in the header and the composer, and changed there.
import { Refused, ask, send, wordsOf } from "./sse";
import { visible } from "./text";

const SETTINGS = { model: "GOOSE_MODEL", mode: "GOOSE_MODE" };
const NAMES = { model: "The model", mode: "What it does by itself" };
const MOST_MODELS = 1000;

type Fact = keyof typeof SETTINGS;

/** What the facts need of the conversation. */
interface Conversation {
  api: string;
  mayWrite: boolean;
  /** What the server has told with the messages. */
  told(): DOMStringMap;
  /** The session's id; one is made where there is none yet. */
  session(): Promise<string>;
  say(words: string): void;
}

export class Facts {
  #of: Conversation;
  #listed = false;

  constructor(of: Conversation) {
    this.#of = of;
    for (const fact of ["model", "mode"] as const) {
      menuOf(fact).addEventListener("click", (event) => {
        const item = (event.target as Element).closest<HTMLElement>("[role=menuitemradio]");
        if (item) void this.#choose(fact, item.dataset.value!);
      });
    }
    menuOf("model").addEventListener("toggle", (event) => {
      if ((event as ToggleEvent).newState === "open" && !this.#listed) void this.#list();
    });
  }

  /** Show what the agent is; what is not told now stays as it was. */
  show(): void {
    const { model, mode } = this.#of.told();
    if (model) {
      if (!itemOf("model", model)) menuOf("model").append(newItem(model));
      this.#label("model", model);
    }
    if (mode) this.#label("mode", mode);
    document.getElementById("composer-facts")!.hidden = false;
  }

  /** Whether it is known what answers. */
  get known(): boolean {
    return buttonsOf("model")[0]!.textContent !== "";
  }

  /** Tell how much the session holds. */
  context(tokens: unknown): void {
    if (typeof tokens !== "number" || !(tokens > 0)) return;
    const words = `${tokens < 1000 ? tokens : `${(tokens / 1000).toFixed(1)}k`} tokens`;
    document.getElementById("fact-context")!.textContent = words;
  }

  #label(fact: Fact, value: string): void {
    const chosen = itemOf(fact, value);
    for (const item of itemsOf(fact)) item.ariaChecked = String(item === chosen);
    const fixed = (this.#of.told().fixed ?? "").split(" ").includes(fact);
    for (const button of buttonsOf(fact)) {
      button.textContent = chosen?.textContent ?? "";
      button.disabled = fixed || !this.#of.mayWrite;
      button.title = fixed ? `${NAMES[fact]}; it is fixed for this environment` : NAMES[fact];
    }
  }

  async #choose(fact: Fact, value: string): Promise<void> {
    if (this.#of.told()[fact] === value) return;
    try {
      const session = await this.#of.session();
      await send("PUT", `${this.#of.api}/sessions/${encodeURIComponent(session)}/settings/${SETTINGS[fact]}`, { value });
      this.#of.told()[fact] = value;
      this.show();
      this.#of.say("This applies from your next message on.");
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Tell what went wrong; the hint of a value that is refused is for programs. */
  #fail(error: unknown): void {
    this.#of.say(error instanceof Refused && error.status === 422 ? error.message : wordsOf(error));
  }

  /** Put the models that the provider offers beside the one that answers now. */
  async #list(): Promise<void> {
    const menu = menuOf("model");
    menu.ariaBusy = "true";
    try {
      const { models } = await (await ask(`${this.#of.api}/models`)).json();
      this.#listed = true;
      const names = (Array.isArray(models) ? models : []).filter((one) => typeof one === "string").slice(0, MOST_MODELS);
      if (!names.length) this.#of.say("The model provider does not tell which models it has.");
      menu.append(...names.filter((one) => !itemOf("model", one)).map(newItem));
    } catch (error) {
      menu.hidePopover();
      this.#fail(error);
    } finally {
      menu.ariaBusy = null;
    }
  }
}

function menuOf(fact: Fact): HTMLElement {
  return document.getElementById(`${fact}-menu`)!;
}

function buttonsOf(fact: Fact): HTMLButtonElement[] {
  return [...document.querySelectorAll<HTMLButtonElement>(`[popovertarget="${fact}-menu"]`)];
}

function itemsOf(fact: Fact): HTMLElement[] {
  return [...menuOf(fact).querySelectorAll<HTMLElement>("[role=menuitemradio]")];
}

function itemOf(fact: Fact, value: string): HTMLElement | undefined {
  return itemsOf(fact).find((item) => item.dataset.value === value);
}

function newItem(value: string): HTMLElement {
  const item = document.createElement("button");
  item.type = "button";
  item.role = "menuitemradio";
  item.ariaChecked = "false";
  item.dataset.value = value;
  item.textContent = visible(value);
  return item;
}
