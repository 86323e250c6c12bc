// Before the first paint: that scripts run, the width of the rail, and the colours that were chosen, or those of the system. A
// plain script in the head, because a module would run too late and the page would flash.
import { kept } from "./kept";

const dark = matchMedia("(prefers-color-scheme: dark)");

function apply(): void {
  document.documentElement.dataset.theme = kept("greylag-theme") ?? (dark.matches ? "dark" : "light");
}

document.documentElement.dataset.scripts = "";
document.documentElement.dataset.rail = kept("greylag-rail") ?? "wide";
apply();
dark.addEventListener("change", apply);
