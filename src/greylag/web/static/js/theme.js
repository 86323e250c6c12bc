// Before the first paint: the colours that were chosen, or those of the system. A plain script in the
// head, because a module would run too late and the page would flash.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem("greylag-theme");
    } catch {
      return null; // storage may be forbidden; the choice then lasts until the next page
    }
  };
  const apply = () => {
    document.documentElement.dataset.theme = chosen() ?? (dark.matches ? "dark" : "light");
  };
  apply();
  dark.addEventListener("change", apply);
})();
