// The pane of changes; what it shows is loaded when it is brought up first.
import { render } from "preact";
import { ChangeLog } from "./changes";
import { loaded } from "./notices";
import { showPane, startPane } from "./panes";
import { Workspace } from "./workspace";

let reviewed = ""; // the turn that the person asked for last

/** Bring the pane to life, on a page that has one. */
export function startChanges(): void {
  startPane("changes", (place, { api, mayWrite }) => {
    const given = { api, mayWrite, log: new ChangeLog(api), workspace: new Workspace(api) };
    return async (now) => {
      const turn = reviewed;
      const part = await loaded(import("./changes_list"), (words) => render(<p class="files-empty">{words}</p>, place));
      const session = document.getElementById("conversation")?.dataset.session ?? "";
      if (part) render(<part.ChangesPane {...given} {...now} session={session} reviewed={turn} />, place);
    };
  });
}

/** Show what a turn changed. */
export function reviewTurn(turn: string): void {
  reviewed = turn;
  showPane("changes");
  reviewed = "";
  document.getElementById("pane-changes")?.focus();
}
