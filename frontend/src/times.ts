// Keeps "3 minutes ago" true. The exact time stands in the title; machines read the attribute.
const STEPS: [string, number][] = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60]];
const REFRESH_MS = 20_000;

/** Return how long ago `moment` was, in words. */
export function ago(moment: Date): string {
  const [count, word] = since(moment);
  return count ? `${count} ${word}${count > 1 ? "s" : ""} ago` : "just now";
}

/** Return the same in a few characters. */
export function agoShort(moment: Date): string {
  const [count, word] = since(moment);
  return count ? `${count}${word === "month" ? "mo" : word[0]}` : "now";
}

function since(moment: Date): [number, string] {
  const seconds = (Date.now() - moment.getTime()) / 1000;
  const [word, length] = STEPS.find(([, least]) => seconds >= least) ?? ["", 1];
  return word ? [Math.floor(seconds / length), word] : [0, word];
}

/** Refresh all times of the page now and then. */
export function startTimes(): void {
  setInterval(() => {
    for (const time of document.querySelectorAll<HTMLTimeElement>("time[datetime]")) {
      const words = ("short" in time.dataset ? agoShort : ago)(new Date(time.dateTime));
      if (time.textContent !== words) time.textContent = words;
    }
  }, REFRESH_MS);
}
