// One dialog for the whole page, outside of all that is live: what changes under it leaves it open.

type Field = HTMLInputElement | HTMLTextAreaElement;

/** Let links that fetch a form open it in the dialog, and forms that succeed close it. What was typed
 * outlives every other way to close it.
 */
export function startDialog(): void {
  const dialog = document.getElementById("dialog") as HTMLDialogElement;
  const body = document.getElementById("dialog-body")!;
  const typed = new Map<string, Map<string, string>>();
  let pressedOutside = false;
  let keeps = true;
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if ((event as CustomEvent).detail.target !== body || dialog.open) return;
    keeps = true;
    restore(body, typed);
    dialog.showModal();
  });
  document.body.addEventListener("close-dialog", () => {
    keeps = false;
    dialog.close();
  });
  dialog.addEventListener("close", () => {
    const form = body.querySelector("form");
    if (form) typed.delete(form.action);
    if (form && keeps) remember(form, typed);
    body.replaceChildren();
  });
  dialog.addEventListener("pointerdown", (event) => { pressedOutside = event.target === dialog; });
  dialog.addEventListener("click", (event) => {
    const cancelled = (event.target as Element).closest("[data-close-dialog]") !== null;
    // A drag that began on the text of a field may end outside; and typed words are not to vanish by a slip.
    const outside = event.target === dialog && pressedOutside && changed(body).length === 0;
    if (!cancelled && !outside) return;
    event.preventDefault();
    keeps = !cancelled;
    dialog.close();
  });
}

function changed(body: HTMLElement): Field[] {
  const fields = [...body.querySelectorAll<Field>("input:not([type=hidden]), textarea")];
  return fields.filter((field) => field.value !== field.defaultValue);
}

function remember(form: HTMLFormElement, typed: Map<string, Map<string, string>>): void {
  const fields = changed(form);
  if (fields.length) typed.set(form.action, new Map(fields.map((field) => [field.name, field.value])));
}

function restore(body: HTMLElement, typed: Map<string, Map<string, string>>): void {
  const form = body.querySelector("form");
  for (const [name, value] of (form && typed.get(form.action)) ?? []) {
    const field = form?.elements.namedItem(name) as Field | null;
    if (field) field.value = value;
  }
}
