// The command palette: projects, sessions and actions of the page by a few letters. It offers what the page
// has anyway, and does what a click there would do.
import { render } from "preact";
import { useLayoutEffect, useState } from "preact/hooks";
import { isComposing } from "./text";

const MOST = 40;

interface Command {
  label: string;
  hint: string;
  run(): void;
}

/** Open the palette; the page has one at most. */
export function openPalette(): void {
  if (document.querySelector("dialog[open]")) return;
  const dialog = document.createElement("dialog");
  dialog.className = "palette";
  dialog.ariaLabel = "Commands";
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    render(null, dialog);
    dialog.remove();
  });
  document.body.append(dialog);
  const run = (command: Command | undefined) => {
    if (!command) return;
    dialog.close();
    command.run();
  };
  render(<Palette all={commands()} run={run} />, dialog);
  dialog.showModal();
}

function Palette({ all, run }: { all: Command[]; run: (command: Command | undefined) => void }) {
  const [typed, type] = useState("");
  const [at, choose] = useState(0);
  const shown = fitting(all, typed);
  useLayoutEffect(() => document.getElementById(`palette-${at}`)?.scrollIntoView({ block: "nearest" }), [typed, at]);
  const search = (words: string) => {
    type(words);
    choose(0);
  };
  const pressed = (event: KeyboardEvent) => {
    if (isComposing(event)) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) choose(shown.length && (at + step + shown.length) % shown.length);
    else if (event.key === "Enter") run(shown[at]);
    else return;
    event.preventDefault();
  };
  return (
    <>
      <input class="palette-input" type="text" role="combobox" aria-expanded="true" aria-controls="palette-list" aria-autocomplete="list"
        aria-activedescendant={shown.length ? `palette-${at}` : undefined} aria-label="Project, session or action" placeholder="Project, session or action"
        autocomplete="off" spellcheck={false} maxLength={200} dir="auto" onInput={(event) => search(event.currentTarget.value)} onKeyDown={pressed} />
      <ul class="palette-list" id="palette-list" role="listbox" aria-label="Matches">
        {shown.map((one, number) => (
          <li key={number} id={`palette-${number}`} role="option" aria-selected={number === at} onClick={() => run(one)}>
            <span class="palette-label" dir="auto">{one.label}</span>
            <span class="palette-hint">{one.hint}</span>
          </li>
        ))}
      </ul>
      <p class="palette-none" role="status">{[!shown.length && "Nothing matches.", leftOut()].filter(Boolean).join(" ")}</p>
    </>
  );
}

/** Say that the sidebar, and so the palette, does not have all projects, if it does not. */
function leftOut(): string {
  const total = document.querySelector(".rail-total")?.textContent ?? "";
  return total.includes(" of ") ? `Only ${total} projects are searched here. Search the others on the page All projects.` : "";
}

/** Return what holds all that is typed, what begins with it first. */
function fitting(all: Command[], typed: string): Command[] {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  const found = all.filter(({ label, hint }) => {
    const text = `${label} ${hint}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const begins = ({ label }: Command) => label.toLowerCase().startsWith(words[0] ?? "");
  return [...found.filter(begins), ...found.filter((one) => !begins(one))].slice(0, MOST);
}

function commands(): Command[] {
  return [
    ...clicks(".rail-row", "Project", (row) => row.querySelector(".rail-name")!),
    ...clicks(".session-link", "Session", (link) => link.querySelector(".session-title")!),
    ...named(".rail-all", "All projects"),
    ...clicks("#new-session, #show-more", "Action"),
    ...named("#rail-new", "New project"),
    ...clicks("#tabs [role=tab]:not(.tab-chat)", "Pane"),
    ...clicks("#project-header :is(form button, [role=menuitem])", "This project"),
    ...clicks("#user li a", "User"),
    ...clicks("#user button", "Action"),
    ...named("#theme-toggle", "Dark or light colours"),
    ...named("#rail-toggle", "Narrow or wide sidebar"),
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
