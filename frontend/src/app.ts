// What every page does. Pages work without it: links lead, forms are sent.
import htmx from "htmx.org/dist/htmx.esm.js";
import { Idiomorph } from "idiomorph/dist/idiomorph.esm.js";
import { startConsole } from "./console";
import { startDialog } from "./dialog";
import { startFiles } from "./files_pane";
import { startLive } from "./live";
import { startPanes } from "./panes";
import { startTerminals } from "./terminal_pane";
import { startTimes } from "./times";

// Our own form of idiomorph's extension: theirs takes every other swap for an inline one too.
htmx.defineExtension("morph", {
  isInlineSwap: (style: string) => style === "morph",
  handleSwap(style: string, target: Element, fragment: DocumentFragment) {
    if (style !== "morph") return false;
    const callbacks = {
      // What a person has opened stays open, whatever the server sends.
      beforeAttributeUpdated: (name: string, node: Element) => !(name === "open" && node.tagName === "DETAILS"),
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
    try {
      localStorage.setItem("greylag-theme", root.dataset.theme);
    } catch {
      // Storage may be forbidden; the choice then lasts until the next page.
    }
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
      if (!menu.contains(target) || target.closest(".menu-body :is(a, button)")) menu.open = false;
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

function startRequests(): void {
  const { body } = document;
  // Errors then come as pieces of a page, not as documents for programs.
  body.addEventListener("htmx:configRequest", (event) => {
    (event as CustomEvent).detail.headers.Accept = "text/html";
  });
  body.addEventListener("htmx:beforeSwap", (event) => {
    const { detail } = event as CustomEvent;
    // A sign-in that has ended answers with the sign-in page.
    if (new URL(detail.xhr.responseURL).pathname !== body.dataset.signIn) return;
    detail.shouldSwap = false;
    location.reload();
  });
  body.addEventListener("htmx:sendError", () => notice("The server cannot be reached. Try again when it is back."));
}

// What is shown once is copied by one press.
function startCopying(): void {
  document.addEventListener("click", async (event) => {
    const button = (event.target as Element).closest<HTMLElement>("[data-copy]");
    const field = button && document.getElementById(button.dataset.copy!);
    if (!(field instanceof HTMLInputElement)) return;
    field.select();
    // Pages over plain HTTP of another machine have no clipboard: what is selected is copied by hand.
    await navigator.clipboard?.writeText(field.value);
    if (navigator.clipboard) button!.textContent = "Copied";
  });
}

function notice(words: string): void {
  const notices = document.getElementById("notices")!;
  if (notices.textContent?.includes(words)) return;
  const box = document.createElement("div");
  box.className = "notice";
  box.innerHTML = '<p></p><button class="btn btn-quiet btn-icon" type="button" data-dismiss aria-label="Dismiss">&times;</button>';
  box.querySelector("p")!.textContent = words;
  notices.append(box);
}

startTheme();
startForms();
startRequests();
startCopying();
startDialog();
startTimes();
startLive();
startConsole();
startFiles();
startTerminals();
startPanes();
