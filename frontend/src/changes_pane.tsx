// The pane of changes; what it shows is loaded when it is brought up first.
import { render } from "preact";
import { ChangeLog } from "./changes";
import { isShown, loaded, projectStatus, showPane, whenShown } from "./panes";
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
  let status = "";
  const refresh = async () => {
    const turn = reviewed;
    status = projectStatus();
    const part = await loaded(place, import("./changes_list"));
    if (!part) return;
    const session = document.getElementById("conversation")?.dataset.session ?? "";
    render(<part.ChangesPane {...given} status={status} session={session} reviewed={turn} news={(news += 1)} />, place);
  };
  whenShown("changes", refresh);
  document.addEventListener("greylag:changed", () => isShown("changes") && status !== projectStatus() && void refresh());
  for (const event of ["turn-ended", "undone"]) document.addEventListener(`greylag:${event}`, () => isShown("changes") && void refresh());
}

/** Show what a turn changed. */
export function reviewTurn(turn: string): void {
  reviewed = turn;
  showPane("changes");
  reviewed = "";
  document.getElementById("pane-changes")?.focus();
}
