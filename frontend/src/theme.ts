// Before the first paint: that scripts run, and the colours that were chosen, or those of the system. A
// plain script in the head, because a module would run too late and the page would flash.
const dark = matchMedia("(prefers-color-scheme: dark)");

function chosen(): string | null {
  try {
    return localStorage.getItem("greylag-theme");
  } catch {
    return null; // storage may be forbidden; the choice then lasts until the next page
  }
}

function apply(): void {
  document.documentElement.dataset.theme = chosen() ?? (dark.matches ? "dark" : "light");
}

document.documentElement.dataset.scripts = "";
apply();
dark.addEventListener("change", apply);
