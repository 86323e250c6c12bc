// The rail beside every page: as wide as the person wants it, a drawer where the window is narrow, its
// search and keys; and what the tab's title and icon tell of the projects in it.
import { keep } from "./kept";
import { loaded } from "./notices";
import { isComposing } from "./text";
import type { TurnState } from "./turn_stream";

const NARROW = matchMedia("(width <= 56.25rem)");
const WORDS: Record<string, string> = { asks: "Needs you: ", working: "Working: " };

let turns: TurnState[] = []; // of the project that is open
let turn = ""; // what the turn that the page follows is about: a hidden page hears of nothing else
let isOver = false; // it has ended since the server told of the project

/** Bring the rail to life, on a page that has one. */
export function startRail(): void {
  const rail = document.getElementById("rail");
  if (!rail) return;
  startWidth(rail);
  startDrawer(rail);
  startSearch();
  startPalette();
  addEventListener("keydown", (event) => pressed(event));
  document.addEventListener("greylag:turn", (event) => {
    const { detail } = event as CustomEvent<string>; // with each event of the turn
    if (detail === turn) return;
    turn = detail;
    isOver = turn === "" && document.visibilityState === "hidden";
    tell();
  });
  document.addEventListener("greylag:turns", (event) => {
    turns = (event as CustomEvent<TurnState[]>).detail;
    markSessions();
  });
  document.addEventListener("greylag:changed", () => (isOver = false));
  for (const news of ["greylag:changed", "greylag:session"]) document.addEventListener(news, refresh);
  document.body.addEventListener("session-deleted", (event) => {
    const link = (event.target as Element).closest(".session")?.querySelector(".session-link[aria-current]");
    if (link) location.assign(document.querySelector<HTMLElement>("[data-page]")!.dataset.page!);
  });
  refresh();
}

function refresh(): void {
  showDrawer(isOpen()); // the server's header knows nothing of it
  markSessions();
  filter();
  tell();
}

// Its width.

function startWidth(rail: HTMLElement): void {
  const toggle = rail.querySelector<HTMLButtonElement>("#rail-toggle")!;
  const root = document.documentElement;
  const show = () => {
    toggle.ariaLabel = NARROW.matches ? "Close" : "Narrow sidebar";
    toggle.ariaPressed = NARROW.matches ? null : String(root.dataset.rail === "narrow");
  };
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    if (NARROW.matches) return closeDrawer();
    root.dataset.rail = root.dataset.rail === "narrow" ? "wide" : "narrow";
    keep("greylag-rail", root.dataset.rail);
    show();
  });
  NARROW.addEventListener("change", show);
  show();
}

function startDrawer(rail: HTMLElement): void {
  document.addEventListener("click", (event) => {
    const target = event.target as Element;
    if (target.closest("button[data-drawer]")) openDrawer();
    else if (isOpen() && !rail.contains(target) && !target.closest("dialog")) closeDrawer();
    else if (target.closest("#rail-new")) closeDrawer();
  });
  rail.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || isComposing(event) || !isOpen() || (event.target as Element).closest("details[open]")) return;
    closeDrawer();
  });
  // What lies under it is not to be used unseen: going on there closes it.
  document.addEventListener("focusin", (event) => {
    const target = event.target as Element;
    if (isOpen() && !rail.contains(target) && !target.closest("dialog")) showDrawer(false);
  });
  NARROW.addEventListener("change", closeDrawer);
}

function isOpen(): boolean {
  return "drawer" in document.documentElement.dataset;
}

function showDrawer(open: boolean): void {
  document.documentElement.toggleAttribute("data-drawer", open);
  for (const button of drawerButtons()) button.ariaExpanded = String(open);
}

function drawerButtons(): HTMLElement[] {
  return [...document.querySelectorAll<HTMLElement>("button[data-drawer]")];
}

function openDrawer(): void {
  showDrawer(true);
  document.querySelector<HTMLElement>("#rail-toggle")!.focus();
}

function closeDrawer(): void {
  if (!isOpen()) return;
  showDrawer(false);
  drawerButtons().find((one) => one.offsetParent !== null)?.focus();
}

// Its search and its keys.

function startSearch(): void {
  const input = search();
  input.addEventListener("input", filter);
  input.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Escape") {
      input.value = "";
      filter();
      input.blur();
    }
    const first = rows().find((row) => !row.parentElement!.hidden);
    if (event.key !== "Enter" || !first || !input.value) return;
    event.preventDefault();
    first.click();
  });
}

/** Hide what is not searched for; what the stream has replaced is looked at again. */
function filter(): void {
  const words = search().value.toLowerCase().split(/\s+/);
  for (const row of rows()) {
    const name = row.querySelector(".rail-name")!.textContent!.toLowerCase();
    row.parentElement!.hidden = !words.every((word) => name.includes(word));
  }
}

function pressed(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTyping(event.target as Element)) return;
  if (event.key === "/") {
    if (NARROW.matches) openDrawer();
    else if (document.documentElement.dataset.rail === "narrow") document.getElementById("rail-toggle")!.click();
    search().focus();
  } else if (event.key.toLowerCase() === "n") {
    document.getElementById("rail-new")!.click();
  } else return;
  event.preventDefault();
}

function startPalette(): void {
  const open = async () => (await loaded(import("./palette")))?.openPalette();
  const button = document.querySelector<HTMLButtonElement>("#palette-open")!;
  button.hidden = false;
  button.addEventListener("click", () => {
    closeDrawer();
    void open();
  });
  addEventListener("keydown", (event) => {
    const asks = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "k";
    // In a terminal the key is the shell's.
    if (!asks || (event.target as Element).closest(".terminal-screen")) return;
    event.preventDefault();
    void open();
  });
}

function isTyping(target: Element): boolean {
  return target.closest("input, textarea, select, [contenteditable]") !== null || document.querySelector("dialog[open]") !== null;
}

function search(): HTMLInputElement {
  return document.querySelector<HTMLInputElement>("#rail-search")!;
}

function rows(): HTMLElement[] {
  return [...document.querySelectorAll<HTMLElement>(".rail-row")];
}

// What the page itself knows better than the server's pieces.

/** Mark the session that the page has gone on to, and those that are at work. */
function markSessions(): void {
  const open = document.getElementById("conversation")?.dataset.session;
  for (const link of document.querySelectorAll(".session-link")) {
    const id = link.closest(".session")!.id.slice("session-".length);
    if (id === open) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    link.querySelector(".dot")?.remove();
    const state = turns.findLast((one) => one.session_id === id)?.state ?? "ended";
    if (state === "ended") continue;
    const dot = document.createElement("span");
    dot.className = `dot dot-${state}`;
    dot.setAttribute("role", "img");
    dot.ariaLabel = state === "asks" ? "needs you" : "working";
    link.querySelector(".session-title")!.after(dot);
  }
}

const untouched = document.title;

/** Have the project's header say what its agent does; the server's word is what it says of an idle one. */
function showDoing(state: string): void {
  const header = document.getElementById("project-header");
  const badge = header?.querySelector<HTMLElement>(".badge");
  if (!header || !badge) return;
  badge.dataset.word ??= badge.textContent!;
  badge.dataset.look ??= badge.className;
  const word = header.dataset.status === "active" ? { asks: "Needs you", working: "Working" }[state] : undefined;
  const [text, look] = word ? [word, `badge badge-${state}`] : [badge.dataset.word, badge.dataset.look];
  if (badge.textContent !== text) badge.textContent = text;
  badge.className = look;
}

function tell(): void {
  const open = document.querySelector<HTMLElement>(".rail-row[aria-current]");
  const stateOf = (row: HTMLElement | null) => (isOver && row === open ? "" : (row?.dataset.state ?? ""));
  const states = rows().map(stateOf);
  const own = turn || stateOf(open);
  const waiting = states.filter((state) => state === "asks").length;
  const name = document.querySelector("#project-header .project-name")?.textContent;
  const title = name ? `${name} \u00b7 Greylag` : untouched;
  showDoing(own);
  document.title = (WORDS[own] ?? (waiting ? `(${waiting}) ` : "")) + title;
  const icon = document.querySelector<HTMLLinkElement>("#icon")!;
  icon.dataset.plain ??= icon.getAttribute("href")!;
  const working = open ? own === "working" : states.includes("working");
  const kind = own === "asks" || waiting ? "asks" : working ? "working" : "plain";
  if (icon.getAttribute("href") !== icon.dataset[kind]) icon.setAttribute("href", icon.dataset[kind]!);
}
