// One dialog for the whole page, outside of all that is live: what changes under it leaves it open.

/** Let links that fetch a form open it in the dialog, and forms that succeed close it. */
export function startDialog() {
  const dialog = document.getElementById("dialog");
  const body = document.getElementById("dialog-body");
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target !== body || dialog.open) return;
    dialog.showModal();
  });
  document.body.addEventListener("close-dialog", () => dialog.close());
  dialog.addEventListener("close", () => body.replaceChildren());
  dialog.addEventListener("click", (event) => {
    const outside = event.target === dialog;
    if (outside || event.target.closest("[data-close-dialog]")) {
      event.preventDefault();
      dialog.close();
    }
  });
}
