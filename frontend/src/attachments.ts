// Files for the agent: they are put into the workspace, and the message says where they are.
import { Workspace } from "./workspace";

const FOLDER = "attachments";

/** Let files be chosen, pasted or dropped for a message. `attempt` does what may fail; `said` tells of it. */
export function startAttaching(form: HTMLFormElement, api: string, attempt: (action: () => Promise<void>) => Promise<unknown>, said: (words: string) => void): void {
  const text = form.querySelector<HTMLTextAreaElement>("#message")!;
  const input = form.querySelector<HTMLInputElement>("#attach-files")!;
  const button = form.querySelector<HTMLButtonElement>("#attach")!;
  const workspace = new Workspace(api);
  let under = 0; // a message that names a file is sent once the file is there
  const take = (files: Iterable<File>) => attempt(async () => {
    under += 1;
    try {
      await write(files);
    } finally {
      under -= 1;
    }
  });
  const write = async (files: Iterable<File>) => {
    for (const file of files) {
      said(`Attaching ${file.name}`);
      const path = `${FOLDER}/${Date.now().toString(36)}-${file.name.replace(/[^\w.-]+/g, "-").slice(-80)}`;
      await workspace.write(path, file, null);
      text.value = [text.value.trimEnd(), path].filter(Boolean).join("\n");
      text.dispatchEvent(new Event("input", { bubbles: true }));
    }
    said("");
    text.focus();
  };
  form.addEventListener("submit", (event) => {
    if (!under) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    said("Wait until the file is attached.");
  }, { capture: true });
  button.hidden = text.disabled;
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    await take([...(input.files ?? [])]);
    input.value = "";
  });
  text.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    // Office programs put a picture of their text beside it.
    if (!files.length || event.clipboardData!.types.includes("text/plain")) return;
    event.preventDefault();
    void take(files);
  });
  form.addEventListener("dragover", (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());
  form.addEventListener("drop", (event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    void take(files);
  });
}
