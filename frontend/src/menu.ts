// Menus of a button: the keys that people know of them. Opening, closing and the way back are the browser's.

/** Bring all menus to life, those too that the server sends later. */
export function startMenus(): void {
  // The event does not rise.
  document.addEventListener("toggle", (event) => {
    const menu = event.target as HTMLElement;
    if (menu.role !== "menu" || (event as ToggleEvent).newState !== "open") return;
    (items(menu).find((item) => item.ariaChecked === "true") ?? items(menu)[0])?.focus();
  }, true);
  document.addEventListener("click", (event) => {
    const menu = (event.target as Element).closest("[role^=menuitem]")?.closest<HTMLElement>("[popover]");
    menu?.hidePopover();
  });
  document.addEventListener("keydown", pressed);
}

function pressed(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  const menu = target.closest<HTMLElement>("[role=menu]");
  if (!menu) {
    if (event.key !== "ArrowDown" || target.getAttribute("aria-haspopup") !== "menu") return;
    event.preventDefault();
    return target.click();
  }
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Tab") return menu.hidePopover();
  const next = chosen(items(menu), target, event.key);
  if (!next) return;
  event.preventDefault();
  event.stopPropagation();
  next.focus();
}

function chosen(all: HTMLElement[], now: HTMLElement, key: string): HTMLElement | undefined {
  const at = all.indexOf(now);
  const places: Record<string, number> = { ArrowDown: (at + 1) % all.length, ArrowUp: at - 1, Home: 0, End: -1 };
  if (key in places) return all.at(places[key]!);
  if (key.length !== 1 || key === " ") return undefined;
  const begins = (one: HTMLElement) => one.textContent!.trim().toLowerCase().startsWith(key.toLowerCase());
  return [...all.slice(at + 1), ...all.slice(0, at + 1)].find(begins);
}

function items(menu: HTMLElement): HTMLElement[] {
  return [...menu.querySelectorAll<HTMLElement>("[role^=menuitem]")];
}
