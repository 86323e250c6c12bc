// Where the focus goes when what has it goes: a row that is deleted, a form that is done, a button that is no
// more. Browsers let it fall to the page, from whose beginning a keyboard has a long way back.

import { keep, kept } from "./kept";

const MOST = 16;
const KEY = "greylag-focus";
const FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex='0']";

const before: HTMLElement[] = []; // what had the focus, the newest last
let byKeys = false; // whether a person uses them now: who clicks has no place to lose

/** Pass the focus on, whoever takes away what has it: to the next row, to what came instead, to where it was before. */
export function startFocus(): void {
  document.addEventListener("focusin", ({ target }) => {
    before.push(target as HTMLElement);
    if (before.length > MOST) before.shift();
  });
  for (const kind of ["keydown", "pointerdown"]) document.addEventListener(kind, () => { byKeys = kind === "keydown"; }, true);
  const changes = { childList: true, subtree: true, attributeFilter: ["hidden", "disabled"] };
  new MutationObserver(passOn).observe(document.body, changes);
  document.addEventListener("submit", (event) => event.defaultPrevented || keepPlace());
  document.body.addEventListener("htmx:beforeOnLoad", (event) => {
    if ((event as CustomEvent).detail.xhr.getResponseHeader("HX-Redirect")) keepPlace();
  });
  takePlace();
}

/** Give a part of the page the focus, if that would else be on what is not seen any more. */
export function focusInstead(place: HTMLElement): void {
  if (!document.activeElement?.checkVisibility()) takesFocus(place).focus({ preventScroll: true });
}

function passOn(records: MutationRecord[]): void {
  const holder = before.at(-1);
  if (!holder || ![holder, document.body].includes(document.activeElement as HTMLElement)) return;
  let gone: Node = holder;
  let lost: MutationRecord | null = null;
  for (const record of records) {
    if (!takes(record, gone)) continue;
    lost = record;
    if (!record.target.isConnected) gone = record.target; // it went with what it was in
  }
  if (!lost) return;
  // What was only moved, or is enabled again, has it as before.
  if (isUsable(holder)) holder.focus({ preventScroll: true });
  else if (byKeys) heirOf(lost, records)?.focus();
}

function takes({ type, target, removedNodes }: MutationRecord, gone: Node): boolean {
  if (type === "childList") return [...removedNodes].some((node) => node.contains(gone));
  const { hidden, disabled } = target as HTMLButtonElement;
  return target === gone ? !disabled : hidden && target.contains(gone);
}

function heirOf({ target, removedNodes, nextSibling, previousSibling }: MutationRecord, records: MutationRecord[]): HTMLElement | undefined {
  const [row] = removedNodes;
  const beside = row ? [elementAt(nextSibling, "nextElementSibling"), elementAt(previousSibling, "previousElementSibling")] : [];
  for (const one of beside) {
    const found = one?.nodeName === row!.nodeName && usableIn(one)[0];
    if (found) return found;
  }
  const came = records.filter((record) => record.target === target).flatMap(({ addedNodes }) => [...addedNodes]);
  for (const place of [...came, ...outward(row ? target : target.parentNode)]) {
    if (!(place instanceof HTMLElement) || !place.checkVisibility()) continue;
    const found = before.findLast((one) => place.contains(one) && isUsable(one)) ?? usableIn(place)[0];
    if (found) return found;
    if (place.textContent!.trim() || place.role === "tabpanel") return takesFocus(place);
  }
  return before.findLast(isUsable);
}

function elementAt(node: Node | null, step: "nextElementSibling" | "previousElementSibling"): Element | null {
  return node instanceof Element ? node : ((node as CharacterData | null)?.[step] ?? null);
}

/** Yield what a place is in, the nearest first; not the page itself. */
function* outward(place: Node | null): Generator<Node> {
  for (let at = place; at && at !== document.body; at = at.parentNode) yield at;
}

function usableIn(place: Element): HTMLElement[] {
  return [...place.querySelectorAll<HTMLElement>(FOCUSABLE)].filter(isUsable);
}

function isUsable(one: HTMLElement): boolean {
  return one.checkVisibility() && !one.matches(":disabled");
}

function takesFocus(place: HTMLElement): HTMLElement {
  if (!place.matches("[tabindex]")) place.tabIndex = -1;
  return place;
}

// A form that leads back to its own page, from which a row is gone then, or to which one has come.

function keepPlace(): void {
  const at = byKeys ? places().indexOf(document.activeElement as HTMLElement) : -1;
  if (at >= 0) keep(KEY, JSON.stringify([location.pathname, at]));
}

function takePlace(): void {
  const [page, at] = JSON.parse(kept(KEY) || "[]");
  keep(KEY, "");
  if (page === location.pathname) (places()[at] ?? places().at(-1))?.focus();
}

function places(): HTMLElement[] {
  return usableIn(document.getElementById("main")!);
}
