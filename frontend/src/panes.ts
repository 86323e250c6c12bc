// The parts of a project's page: the conversation beside one of the panes, or on a narrow page one of them all.
import { focusInstead } from "./focus";
import { keep, kept } from "./kept";

const NARROW = matchMedia("(width <= 56.25rem)");
const WIDTH_KEY = "greylag-side";
const PANE_KEY = "greylag-pane";

/** Called when a pane is shown, by its name. */
const watchers = new Map<string, () => void>();

/** Call `shown` whenever the pane `name` is brought up. */
export function whenShown(name: string, shown: () => void): void {
  watchers.set(name, shown);
}

/** The project of the page. */
interface Project {
  api: string;
  page: string;
  mayWrite: boolean;
}

/** How it stands, one object as long as the page lives: what loads a part first reads it afterwards, as it is then.
 * `news` changes when what is shown of it may not be true any more.
 */
export interface Now {
  status: string;
  news: number;
}

/** Bring the pane `name` to life, on a page that has it. `begin` returns what shows it as things stand now: called
 * when it is brought up, and for news while it is; once it was up, `always` also when it is not.
 */
export function startPane(name: string, begin: (place: HTMLElement, project: Project) => (now: Now) => unknown, { always = false } = {}): void {
  const place = document.querySelector<HTMLElement>(`#pane-${name} > div`);
  const about = document.querySelector<HTMLElement>("[data-console]")?.dataset;
  if (!place || !about?.api || !about.page) return;
  const show = begin(place, { api: about.api, page: about.page, mayWrite: about.writes === "true" });
  const now = { status: "", news: 0 };
  const refresh = () => {
    now.status = projectStatus();
    now.news += 1;
    show(now);
  };
  const hasChanged = () => (always ? now.news > 0 : isShown(name) && now.status !== projectStatus());
  whenShown(name, refresh);
  document.addEventListener("greylag:changed", () => hasChanged() && refresh());
  for (const event of ["turn-ended", "undone"]) document.addEventListener(`greylag:${event}`, () => isShown(name) && refresh());
}

/** Tell whether the pane `name` is on the page now. */
export function isShown(name: string): boolean {
  return Boolean(document.getElementById(`pane-${name}`)?.offsetParent);
}

/** Return how the project stands, as the page's header has it. */
export function projectStatus(): string {
  return document.getElementById("project-header")?.dataset.status ?? "";
}

/** Show a part of the page by its name. */
export function showPane(name: string): void {
  const panes = document.getElementById("panes");
  if (!panes || !document.getElementById(`tab-${name}`)) return;
  panes.dataset.shown = name;
  // Beside the conversation there is always a pane.
  const side = name === "chat" ? (panes.dataset.side ?? lastPane()) : name;
  panes.dataset.side = side;
  keep(PANE_KEY, side);
  for (const one of tabs()) {
    const selected = nameOf(one) === (NARROW.matches ? name : side);
    one.setAttribute("aria-selected", String(selected));
    one.tabIndex = selected ? 0 : -1;
    // What is seldom looked at has its tab while it is open, and once it was chosen here.
    if (nameOf(one) === name) delete one.dataset.seldom;
    one.hidden = "seldom" in one.dataset && !selected;
  }
  for (const pane of document.querySelectorAll<HTMLElement>(".pane")) pane.hidden = pane.id !== `pane-${side}`;
  focusInstead(document.getElementById(`pane-${name}`)!);
  if (name === "chat" && NARROW.matches) return;
  watchers.get(side)?.();
  document.dispatchEvent(new Event("greylag:shown"));
}

/** Bring the tabs and the splitter to life, on a page that has them. */
export function startPanes(): void {
  const list = document.getElementById("tabs");
  if (!list) return;
  list.addEventListener("click", (event) => {
    const tab = (event.target as Element).closest("[role=tab]");
    if (tab) showPane(nameOf(tab));
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const all = tabs().filter((tab) => tab.offsetParent !== null);
    const next = step && all.at((all.indexOf(event.target as HTMLElement) + step) % all.length);
    if (!next) return;
    showPane(nameOf(next));
    next.focus();
  });
  addEventListener("keydown", (event) => {
    if (event.altKey && !event.ctrlKey && event.key === "0") {
      event.preventDefault();
      showPane("chat");
      document.getElementById("message")?.focus();
      return;
    }
    const tab = event.altKey && !event.ctrlKey ? tabs().filter((one) => nameOf(one) !== "chat")[Number(event.key) - 1] : undefined;
    if (!tab) return;
    event.preventDefault();
    showPane(nameOf(tab));
  });
  NARROW.addEventListener("change", () => showPane(document.getElementById("panes")!.dataset.shown!));
  startSplitter();
  showPane("chat");
}

function tabs(): HTMLElement[] {
  return [...document.querySelectorAll<HTMLElement>("#tabs [role=tab]")];
}

/** Return the pane that was beside the conversation last, on whatever page; the files if there was none. */
function lastPane(): string {
  const last = kept(PANE_KEY);
  return document.getElementById(`pane-${last}`) && last ? last : "files";
}

function nameOf(tab: Element | undefined): string {
  return tab?.id.replace("tab-", "") ?? "";
}

function startSplitter(): void {
  const splitter = document.getElementById("splitter")!;
  const panes = document.getElementById("panes")!;
  const least = Number(splitter.ariaValueMin);
  const most = Number(splitter.ariaValueMax);
  const set = (percent: number) => {
    const side = Math.round(Math.min(most, Math.max(least, percent)));
    splitter.ariaValueNow = String(side);
    panes.style.setProperty("--side", `${side}%`);
    keep(WIDTH_KEY, String(side));
  };
  const width = Number(kept(WIDTH_KEY));
  if (width) set(width);
  splitter.addEventListener("pointerdown", (event) => splitter.setPointerCapture(event.pointerId));
  splitter.addEventListener("pointermove", (event) => {
    if (!splitter.hasPointerCapture(event.pointerId)) return;
    const { right, width } = panes.getBoundingClientRect();
    set(((right - event.clientX) / width) * 100);
  });
  splitter.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: 2, ArrowRight: -2 }[event.key];
    if (step) set(Number(splitter.ariaValueNow) + step);
  });
}
