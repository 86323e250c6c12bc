// A project's first message: written where there are no projects yet, sent by the page of the one that is made for it.
import { Draft } from "./drafts";
import { keep, kept } from "./kept";
import { endsMessage } from "./text";

const keyOf = (key: string) => `greylag-first:${key}`;

/** Bring the composer of an empty list to life, and the examples that fill any composer. */
export function startFirst(): void {
  const draft = new Draft(`first ${location.pathname}`);
  const text = document.querySelector<HTMLTextAreaElement>("#first-message");
  if (text) text.value ||= draft.read();
  document.addEventListener("click", (event) => {
    const chip = (event.target as Element).closest<HTMLElement>("[data-fill]");
    const field = chip && document.querySelector<HTMLTextAreaElement>(chip.dataset.fill!);
    if (!field) return;
    field.value = chip!.textContent!.trim();
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
  });
  document.addEventListener("input", (event) => {
    const field = event.target as HTMLTextAreaElement;
    if (field.id === "first-message") draft.keep(field.value);
  });
  document.addEventListener("keydown", (event) => {
    const field = event.target as HTMLTextAreaElement;
    if (field.id !== "first-message" || !endsMessage(event)) return;
    event.preventDefault();
    if (field.value.trim()) field.form!.requestSubmit();
  });
  document.addEventListener("submit", (event) => {
    const form = event.target as HTMLFormElement;
    if (form.id !== "start") return;
    const given = new FormData(form);
    const [message, key] = [String(given.get("message")), String(given.get("key"))];
    if (!message.trim()) return;
    if (!keep(keyOf(key), message, "sessionStorage")) return; // the server sends it
    form.querySelector<HTMLInputElement>("[name=first]")!.value = "page";
  });
}

/** Return the message that this page is to begin with, if it was opened for one; once. */
export function takeFirst(): string | null {
  const key = new URLSearchParams(location.search).get("first");
  if (key === null) return null;
  history.replaceState(null, "", location.pathname);
  const message = kept(keyOf(key), "sessionStorage");
  keep(keyOf(key), null, "sessionStorage");
  if (message) new Draft(`first ${location.pathname.split("/projects/")[0]}`).keep("");
  return message;
}
