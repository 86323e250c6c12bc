// One dialog for the whole page, outside of all that is live: what changes under it leaves it open.

type Field = HTMLInputElement | HTMLTextAreaElement;
type Typed = Map<string, Map<string, string>>; // by what the form does and the field's name

/** Let links that fetch a form open it in the dialog, and forms that succeed close it. What was typed
 * outlives every other way to close it, that of the page that goes (for one, to the sign-in page) too.
 */
export function startDialog(): void {
  const dialog = document.getElementById("dialog") as HTMLDialogElement;
  const body = document.getElementById("dialog-body")!;
  const typed = before();
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
  document.body.addEventListener("htmx:beforeOnLoad", (event) => {
    const { xhr } = (event as CustomEvent).detail;
    if (xhr.status < 300 && xhr.getResponseHeader("HX-Redirect")) keeps = false; // it is done, and leads on
  });
  const leave = () => {
    const form = body.querySelector("form");
    if (form) typed.delete(form.action);
    if (form && keeps) remember(form, typed);
  };
  dialog.addEventListener("close", () => {
    leave();
    body.replaceChildren();
  });
  addEventListener("pagehide", () => {
    leave();
    keepTyped(typed);
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

function remember(form: HTMLFormElement, typed: Typed): void {
  const fields = changed(form);
  if (fields.length) typed.set(form.action, new Map(fields.map((field) => [field.name, field.value])));
}

function restore(body: HTMLElement, typed: Typed): void {
  const form = body.querySelector("form");
  for (const [name, value] of (form && typed.get(form.action)) ?? []) {
    const field = form?.elements.namedItem(name) as Field | null;
    if (field) field.value = value;
  }
}

function keyOf(): string {
  return `greylag-typed:${document.body.dataset.person ?? ""}`;
}

/** Return what was typed in this tab before the page came. */
function before(): Typed {
  try {
    const kept: [string, [string, string][]][] = JSON.parse(sessionStorage.getItem(keyOf()) ?? "[]");
    return new Map(kept.map(([form, fields]) => [form, new Map(fields)]));
  } catch {
    return new Map(); // storage may be forbidden
  }
}

function keepTyped(typed: Typed): void {
  try {
    if (typed.size) sessionStorage.setItem(keyOf(), JSON.stringify([...typed].map(([form, fields]) => [form, [...fields]])));
    else sessionStorage.removeItem(keyOf());
  } catch {
    // See above; or there is too much of it.
  }
}
