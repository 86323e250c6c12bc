// The pane of changes; what it shows is loaded when it is brought up first.
import { render } from "preact";
import { ChangeLog } from "./changes";
import { showPane, whenShown } from "./panes";
import { Workspace } from "./workspace";

let reviewed = ""; // the turn that the person asked for last

/** Bring the pane to life, on a page that has one. */
export function startChanges(): void {
  const place = document.getElementById("changes");
  const root = document.querySelector<HTMLElement>("[data-console]");
  const api = root?.dataset.api;
  if (!place || !api) return;
  const given = { api, log: new ChangeLog(api), workspace: new Workspace(api), mayWrite: root.dataset.writes === "true" };
  let news = 0;
  const refresh = async () => {
    const turn = reviewed;
    const loaded = await import("./changes_list").catch(() => null);
    if (!loaded) {
      place.textContent = "This cannot be loaded now. Choose Changes again when the server can be reached.";
      return;
    }
    const { ChangesPane } = loaded;
    const status = document.getElementById("project-header")?.dataset.status ?? "";
    const session = document.getElementById("conversation")?.dataset.session ?? "";
    render(<ChangesPane {...given} status={status} session={session} reviewed={turn} news={(news += 1)} />, place);
  };
  const isOpen = () => place.checkVisibility();
  whenShown("changes", refresh);
  for (const event of ["changed", "turn-ended", "undone"]) document.addEventListener(`greylag:${event}`, () => isOpen() && void refresh());
}

/** Show what a turn changed. */
export function reviewTurn(turn: string): void {
  reviewed = turn;
  showPane("changes");
  reviewed = "";
  document.getElementById("pane-changes")?.focus();
}
