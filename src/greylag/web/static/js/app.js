// What every page does. Pages work without it: links lead, forms are sent.
import { startConsole } from "./console.js";
import { startDialog } from "./dialog.js";
import { startLive } from "./live.js";
import { startTimes } from "./times.js";

// Our own form of idiomorph's extension: theirs takes every other swap for an inline one too.
htmx.defineExtension("morph", {
  isInlineSwap: (style) => style === "morph",
  handleSwap(style, target, fragment) {
    if (style !== "morph") return false;
    const callbacks = {
      // What a person has opened stays open, whatever the server sends.
      beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
    };
    return Idiomorph.morph(target, fragment.children, { morphStyle: "outerHTML", callbacks });
  },
});

function startTheme() {
  const button = document.getElementById("theme-toggle");
  const root = document.documentElement;
  const show = () => button.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
  button.hidden = false;
  show();
  button.addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    show();
    try {
      localStorage.setItem("greylag-theme", root.dataset.theme);
    } catch {
      // Storage may be forbidden; the choice then lasts until the next page.
    }
  });
}

function startForms() {
  for (const form of document.querySelectorAll("[data-submit-on-change]")) {
    form.addEventListener("change", () => form.requestSubmit());
  }
  for (const one of document.querySelectorAll("[data-only-without-scripts]")) one.hidden = true;
  // The second click of a double click would meet another button in the first one's place.
  const again = (event) => event.detail > 1 && event.target.closest?.("form[hx-post] .btn");
  document.addEventListener("click", (event) => again(event) && stop(event), true);
  document.addEventListener("click", (event) => event.target.closest("[data-dismiss]")?.parentElement.remove());
}

function stop(event) {
  event.preventDefault();
  event.stopPropagation();
}

function startRequests() {
  const body = document.body;
  // Errors then come as pieces of a page, not as documents for programs.
  body.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers.Accept = "text/html";
  });
  body.addEventListener("htmx:beforeSwap", (event) => {
    // A sign-in that has ended answers with the sign-in page.
    if (new URL(event.detail.xhr.responseURL).pathname !== document.body.dataset.signIn) return;
    event.detail.shouldSwap = false;
    location.reload();
  });
  body.addEventListener("htmx:sendError", () => notice("The server cannot be reached.", "Try again when it is back."));
}

function notice(message, hint) {
  const box = document.createElement("div");
  box.className = "notice";
  const words = document.createElement("p");
  words.textContent = `${message} ${hint}`;
  const dismiss = document.createElement("button");
  dismiss.className = "btn btn-quiet btn-icon";
  dismiss.dataset.dismiss = "";
  dismiss.ariaLabel = "Dismiss";
  dismiss.textContent = "\u00d7";
  box.append(words, dismiss);
  document.getElementById("notices").append(box);
}

startTheme();
startForms();
startRequests();
startDialog();
startTimes();
startLive();
startConsole();
