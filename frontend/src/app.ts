// What every page does. Pages work without it: links lead, forms are sent.
import htmx from "htmx.org/dist/htmx.esm.js";
import { Idiomorph } from "idiomorph/dist/idiomorph.esm.js";
import { startChanges } from "./changes_pane";
import { copy } from "./clipboard";
import { startConsole } from "./console";
import { startDialog } from "./dialog";
import { keep } from "./kept";
import { startFiles } from "./files_pane";
import { startFocus } from "./focus";
import { startLive } from "./live";
import { startLog } from "./log_pane";
import { startMenus } from "./menu";
import { startNotices } from "./notices";
import { startNotifications } from "./notifications";
import { startPanes } from "./panes";
import { startPreview } from "./preview_pane";
import { startRail } from "./rail";
import { startTerminals } from "./terminal_pane";
import { startFirst } from "./start";
import { startTimes } from "./times";

// Our own form of idiomorph's extension: theirs takes every other swap for an inline one too.
htmx.defineExtension("morph", {
  isInlineSwap: (style: string) => style === "morph",
  handleSwap(style: string, target: Element, fragment: DocumentFragment) {
    if (style !== "morph") return false;
    const callbacks = {
      // What a person has opened stays open, whatever the server sends.
      beforeAttributeUpdated: (name: string, node: Element) => !(name === "open" && node.tagName === "DETAILS"),
      // What the page itself knows of stays; and a form's answer may come after newer news of the stream.
      beforeNodeMorphed: (node: Node, next: Node) =>
        !(node instanceof HTMLElement && next instanceof HTMLElement && ("own" in node.dataset || Number(next.dataset.seq) < Number(node.dataset.seq))),
    };
    return Idiomorph.morph(target, fragment.children, { morphStyle: "outerHTML", callbacks });
  },
} as never);

function startTheme(): void {
  const button = document.getElementById("theme-toggle") as HTMLButtonElement;
  const root = document.documentElement;
  const show = () => button.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
  button.hidden = false;
  show();
  button.addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    show();
    keep("greylag-theme", root.dataset.theme);
  });
}

function startForms(): void {
  // The second click of a double click would meet another button in the first one's place.
  const again = (event: MouseEvent) => event.detail > 1 && (event.target as Element).closest("form[hx-post] .btn");
  document.addEventListener("click", (event) => again(event) && stop(event), true);
  document.addEventListener("click", (event) => {
    const target = event.target as Element;
    target.closest("[data-dismiss]")?.parentElement?.remove();
    for (const menu of document.querySelectorAll<HTMLDetailsElement>("details.menu[open]")) {
      if (menu.contains(target) && !target.closest(".menu-body :is(a, button)")) continue;
      if (menu.contains(document.activeElement)) menu.querySelector("summary")!.focus();
      menu.open = false;
    }
  });
  document.addEventListener("keydown", (event) => {
    const menu = (event.target as Element).closest?.<HTMLDetailsElement>("details.menu[open]");
    if (event.key !== "Escape" || !menu) return;
    menu.open = false;
    menu.querySelector("summary")?.focus();
  });
}

function stop(event: Event): void {
  event.preventDefault();
  event.stopPropagation();
}

// What is shown once is copied by one press.
function startCopying(): void {
  document.addEventListener("click", async (event) => {
    const button = (event.target as Element).closest<HTMLElement>("[data-copy]");
    const field = button && document.getElementById(button.dataset.copy!);
    if (!(field instanceof HTMLInputElement)) return;
    field.select();
    // Where the browser does not, what is selected is copied by hand.
    if (await copy(field.value)) button!.textContent = "Copied";
  });
}

startTheme();
startForms();
startFocus();
startMenus();
startNotices();
startNotifications();
startCopying();
startRail();
startDialog();
startTimes();
startFirst();
startLive();
startConsole();
startChanges();
startFiles();
startTerminals();
startPreview();
startLog();
startPanes();
