// One dialog for the whole page, outside of all that is live: what changes under it leaves it open.

import { keep, kept } from "./kept";

type Field = HTMLInputElement | HTMLTextAreaElement;
type Values = Map<string, string>; // by the field's name
type Typed = Map<string, Values>; // by what the form does

/** Let links that fetch a form open it in the dialog, and forms that succeed close it. What was typed
 * outlives every other way to close it, that of the page that goes (for one, to the sign-in page) too.
 */
export function startDialog(): void {
  const dialog = document.getElementById("dialog") as HTMLDialogElement;
  const body = document.getElementById("dialog-body")!;
  const notices = document.getElementById("notices")!;
  const typed = before();
  let given: Values = new Map(); // what stood in the form at first: one that comes back refused has what was typed
  let pressedOutside = false;
  let keeps = true;
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if ((event as CustomEvent).detail.target !== body || dialog.open) return;
    keeps = true;
    if (!body.querySelector(".problem")) given = valuesOf(fieldsIn(body));
    restore(body, typed);
    dialog.append(notices); // outside of it they can be neither pressed nor, on a phone, seen
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
  const changed = () => fieldsIn(body).filter((field) => field.value !== given.get(field.name));
  const leave = () => {
    const form = body.querySelector("form");
    if (!form) return;
    const values = valuesOf(changed());
    if (keeps && values.size) typed.set(form.action, values);
    else typed.delete(form.action);
  };
  dialog.addEventListener("close", () => {
    leave();
    body.replaceChildren();
    document.body.append(notices);
  });
  addEventListener("pagehide", () => {
    leave();
    keepTyped(typed);
  });
  dialog.addEventListener("pointerdown", (event) => { pressedOutside = event.target === dialog; });
  dialog.addEventListener("click", (event) => {
    const cancelled = (event.target as Element).closest("[data-close-dialog]") !== null;
    // A drag that began on the text of a field may end outside; and typed words are not to vanish by a slip.
    const outside = event.target === dialog && pressedOutside && changed().length === 0;
    if (!cancelled && !outside) return;
    event.preventDefault();
    keeps = !cancelled;
    dialog.close();
  });
}

function fieldsIn(body: HTMLElement): Field[] {
  return [...body.querySelectorAll<Field>("input:not([type=hidden]), textarea")];
}

function valuesOf(fields: Field[]): Values {
  return new Map(fields.map((field) => [field.name, field.value]));
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
    const forms: [string, [string, string][]][] = JSON.parse(kept(keyOf(), "sessionStorage") ?? "[]");
    return new Map(forms.map(([form, fields]) => [form, new Map(fields)]));
  } catch {
    return new Map(); // it is of another version
  }
}

function keepTyped(typed: Typed): void {
  const forms = [...typed].map(([form, fields]) => [form, [...fields]]);
  keep(keyOf(), forms.length ? JSON.stringify(forms) : null, "sessionStorage");
}
