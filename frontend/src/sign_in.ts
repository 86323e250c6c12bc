// Signs in by the link that `greylag up` prints. What the link holds stands in its fragment, which no
// server, log or Referer sees; it is sent as the form sends a token, and leaves the address bar.
function useLink(): void {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  history.replaceState(null, "", location.pathname + location.search);
  const form = document.getElementById("sign-in") as HTMLFormElement;
  const token = form.elements.namedItem("token") as HTMLInputElement;
  token.type = "hidden"; // nothing that a browser should offer to remember
  token.value = given;
  form.submit();
}

addEventListener("hashchange", useLink);
useLink();

export {};
