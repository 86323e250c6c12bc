// Words of others, made harmless to look at. `visible` of web/dashboard/pages.py does the same on the server.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

function picture(character: string): string {
  const code = character.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `[U+${code.toString(16).toUpperCase().padStart(4, "0")}]`;
}

/** Return `text` with control characters and bidirectional overrides made visible. */
export function visible(text: string): string {
  return text.replace(/\r\n/g, "\n").replace(UNSEEN, picture);
}

/** Return what was wanted of a value that somebody else wrote: text, else nothing. */
export function textOr(value: unknown, other = ""): string {
  return typeof value === "string" ? value : other;
}

/** Return "3 files", "1 file". */
export function counted(count: number, noun: string, nouns = `${noun}s`): string {
  return `${count} ${count === 1 ? noun : nouns}`;
}

/** Tell whether a key is an input method's, in which it chooses a character, ends that or gives it up. */
export function isComposing(event: KeyboardEvent): boolean {
  // Safari tells of the key that ends it only after the end, by the code that such keys have.
  return event.isComposing || event.keyCode === 229;
}

/** Tell whether a key sends what was typed. */
export function endsMessage(event: KeyboardEvent): boolean {
  // Where one types with a thumb it is a new line.
  return event.key === "Enter" && !event.shiftKey && !isComposing(event) && !matchMedia("(pointer: coarse)").matches;
}
