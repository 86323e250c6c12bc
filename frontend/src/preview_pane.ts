// The pane of previews. What shows them is loaded when it is first opened.
import { h, render } from "preact";
import { loaded } from "./notices";
import { showPane, startPane } from "./panes";

/** A file that was asked for, which is another each time. */
let wanted: { path: string } | null = null;

/** Bring the pane to life, on a page that has one. */
export function startPreview(): void {
  startPane("preview", (place, { api, page }) => async (now) => {
    const part = await loaded(import("./preview_view"), (words) => render(h("p", { class: "files-empty" }, words), place));
    part?.show(place, { api, page, status: now.status, wanted });
  }, { always: true });
}

/** Show a file of the workspace as a browser does. */
export function previewFile(path: string): void {
  wanted = { path };
  showPane("preview");
}
