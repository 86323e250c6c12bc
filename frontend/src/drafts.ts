// What a person has typed and not sent: kept in this browser under a name, whatever happens to the page.

/** One text that is kept. Storage may be forbidden; the text then lasts as long as the page. */
export class Draft {
  #key: string;

  constructor(name: string) {
    this.#key = `greylag-draft:${name}`;
  }

  read(): string {
    try {
      return localStorage.getItem(this.#key) ?? "";
    } catch {
      return "";
    }
  }

  keep(text: string): void {
    try {
      if (text) localStorage.setItem(this.#key, text);
      else localStorage.removeItem(this.#key);
    } catch {
      // See above.
    }
  }
}
