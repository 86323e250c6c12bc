// What is kept in this browser, or in this tab of it alone, as what a person chose on the page. Storage may be
// forbidden, or full; what is to be kept then lasts until the next page.

type Place = "localStorage" | "sessionStorage";

export function kept(key: string, place: Place = "localStorage"): string | null {
  try {
    return window[place].getItem(key);
  } catch {
    return null;
  }
}

/** Keep a value, or none (`null`); tell whether this browser does. */
export function keep(key: string, value: string | null, place: Place = "localStorage"): boolean {
  try {
    if (value === null) window[place].removeItem(key);
    else window[place].setItem(key, value);
    return true;
  } catch {
    return false;
  }
}
