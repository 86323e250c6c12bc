// The pane of previews. What shows them is loaded when it is first opened.
import { loaded, projectStatus, showPane, whenShown } from "./panes";

/** A file that was asked for, which is another each time. */
let wanted: { path: string } | null = null;

/** Bring the pane to life, on a page that has one. */
export function startPreview(): void {
  const place = document.getElementById("preview");
  const about = document.querySelector<HTMLElement>("[data-console]")?.dataset;
  if (!place || !about?.api || !about.page) return;
  const { api, page } = about;
  const refresh = async () => {
    const part = await loaded(place, import("./preview_view"));
    part?.show(place, { api, page, status: projectStatus(), wanted });
  };
  whenShown("preview", refresh);
  document.addEventListener("greylag:changed", () => place.hasChildNodes() && void refresh());
}

/** Show a file of the workspace as a browser does. */
export function previewFile(path: string): void {
  wanted = { path };
  showPane("preview");
}
