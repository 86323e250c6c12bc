// The command palette: projects, sessions and actions of the page by a few letters. It offers what the page
// has anyway, and does what a click there would do.

const MOST = 40;

interface Command {
  label: string;
  hint: string;
  run(): void;
}

/** Open the palette; the page has one at most. */
export function openPalette(): void {
  if (document.querySelector("dialog[open]")) return;
  new Palette(commands()).open();
}

class Palette {
  #all: Command[];
  #shown: Command[] = [];
  #at = 0;
  #dialog = document.createElement("dialog");
  #input: HTMLInputElement;
  #list: HTMLElement;

  constructor(all: Command[]) {
    this.#all = all;
    this.#dialog.className = "palette";
    this.#dialog.setAttribute("aria-label", "Commands");
    this.#dialog.innerHTML =
      '<input class="palette-input" type="text" role="combobox" aria-expanded="true" aria-controls="palette-list" aria-autocomplete="list" ' +
      'aria-label="Project, session or action" placeholder="Project, session or action" autocomplete="off" spellcheck="false" maxlength="200" dir="auto">' +
      '<ul class="palette-list" id="palette-list" role="listbox" aria-label="Matches"></ul><p class="palette-none" role="status"></p>';
    this.#input = this.#dialog.querySelector("input")!;
    this.#list = this.#dialog.querySelector("ul")!;
    this.#input.addEventListener("input", () => this.#search());
    this.#input.addEventListener("keydown", (event) => this.#pressed(event));
    this.#list.addEventListener("click", (event) => {
      const option = (event.target as Element).closest("[role=option]");
      if (option) this.#run([...this.#list.children].indexOf(option));
    });
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#dialog.remove());
  }

  open(): void {
    document.body.append(this.#dialog);
    this.#search();
    this.#dialog.showModal();
  }

  #search(): void {
    const words = this.#input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fitting = this.#all.filter(({ label, hint }) => {
      const text = `${label} ${hint}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const begins = ({ label }: Command) => label.toLowerCase().startsWith(words[0] ?? "");
    this.#shown = [...fitting.filter(begins), ...fitting.filter((one) => !begins(one))].slice(0, MOST);
    this.#list.replaceChildren(...this.#shown.map(optionOf));
    this.#dialog.querySelector(".palette-none")!.textContent = this.#shown.length ? "" : "Nothing matches.";
    this.#choose(0);
  }

  #choose(at: number): void {
    const options = [...this.#list.children];
    this.#at = options.length ? (at + options.length) % options.length : 0;
    options.forEach((option, number) => option.setAttribute("aria-selected", String(number === this.#at)));
    const chosen = options[this.#at];
    if (chosen) this.#input.setAttribute("aria-activedescendant", chosen.id);
    else this.#input.removeAttribute("aria-activedescendant");
    chosen?.scrollIntoView({ block: "nearest" });
  }

  #pressed(event: KeyboardEvent): void {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) this.#choose(this.#at + step);
    else if (event.key === "Enter" && !event.isComposing) this.#run(this.#at);
    else return;
    event.preventDefault();
  }

  #run(at: number): void {
    const command = this.#shown[at];
    if (!command) return;
    this.#dialog.close();
    command.run();
  }
}

function optionOf({ label, hint }: Command, number: number): HTMLElement {
  const option = document.createElement("li");
  option.id = `palette-${number}`;
  option.setAttribute("role", "option");
  const name = document.createElement("span");
  name.className = "palette-label";
  name.dir = "auto";
  name.textContent = label;
  const kind = document.createElement("span");
  kind.className = "palette-hint";
  kind.textContent = hint;
  option.append(name, kind);
  return option;
}

function commands(): Command[] {
  return [
    ...clicks(".rail-row", "Project", (row) => row.querySelector(".rail-name")!),
    ...clicks(".session-link", "Session", (link) => link.querySelector(".session-title")!),
    ...clicks("#new-session, .rail-all, #show-more", "Action"),
    ...named("#rail-new", "New project"),
    ...clicks("#tabs [role=tab]:not(.tab-chat)", "Pane"),
    ...clicks("#project-header :is(form button, [role=menuitem])", "This project"),
    ...clicks("#user li a", "User"),
    ...clicks("#user button", "Action"),
    ...named("#theme-toggle", "Dark or light colours"),
    ...named("#rail-toggle", "Narrow or wide rail"),
  ];
}

function clicks(selector: string, hint: string, nameOf = (one: HTMLElement): Element => one): Command[] {
  return [...document.querySelectorAll<HTMLElement>(selector)].map((one) => ({
    label: nameOf(one).textContent!.trim().replace(/\s+/g, " "), hint, run: () => one.click(),
  }));
}

function named(selector: string, label: string): Command[] {
  return clicks(selector, "Action").map((one) => ({ ...one, label }));
}
