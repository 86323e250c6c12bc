// The pane of previews. What shows them is loaded when it is first opened.
import { projectStatus, showPane, whenShown } from "./panes";

/** A file that was asked for, which is another each time. */
let wanted: { path: string } | null = null;

/** Bring the pane to life, on a page that has one. */
export function startPreview(): void {
  const place = document.getElementById("preview");
  const about = document.querySelector<HTMLElement>("[data-console]")?.dataset;
  if (!place || !about?.api || !about.page) return;
  const { api, page } = about;
  const refresh = async () => {
    const { show } = await import("./preview_view");
    show(place, { api, page, status: projectStatus(), wanted });
  };
  whenShown("preview", () => {
    refresh().catch(() => { place.textContent = "The server cannot be reached. Try again."; });
  });
  document.addEventListener("greylag:changed", () => place.hasChildNodes() && void refresh());
}

/** Show a file of the workspace as a browser does. */
export function previewFile(path: string): void {
  wanted = { path };
  showPane("preview");
}
