// Words of others, made harmless to look at. The same as web/dashboard/text.py does on the server.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

function picture(character) {
  const code = character.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `[U+${code.toString(16).toUpperCase().padStart(4, "0")}]`;
}

/** Return `text` with control characters and bidirectional overrides made visible. */
export function visible(text) {
  return String(text ?? "").replace(/\r\n/g, "\n").replace(UNSEEN, picture);
}

/** Return an element with a class and harmless text, ready to be put anywhere. */
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = visible(text);
  return made;
}
