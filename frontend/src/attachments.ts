// Files for the agent: they are put into the workspace, and the message says where they are.
import { wordsOf } from "./sse";
import { visible } from "./text";
import { putEach } from "./upload";
import { Workspace } from "./workspace";

const FOLDER = "attachments";

/** Let files be chosen, pasted or dropped for a message. `said` tells how it goes. */
export function startAttaching(form: HTMLFormElement, api: string, said: (words: string) => void): void {
  const text = form.querySelector<HTMLTextAreaElement>("#message")!;
  const input = form.querySelector<HTMLInputElement>("#attach-files")!;
  const button = form.querySelector<HTMLButtonElement>("#attach")!;
  const workspace = new Workspace(api);
  let under = 0; // a message that names a file is sent once the file is there
  const failed = new Map<string, string[]>(); // names by the reason, since nothing was under way
  const say = (now = "") => said([...[...failed].map(([why, names]) => `Not attached: ${names.join(", ")}. ${why}`), now].filter(Boolean).join(" "));
  const take = async (files: File[]) => {
    if (!under) failed.clear();
    under += 1;
    await putEach(files.map((file) => ({ file })), attach, ({ file }, error) => {
      const why = wordsOf(error);
      failed.set(why, [...(failed.get(why) ?? []), visible(file.name)]);
      say();
    });
    under -= 1;
    if (under) return;
    say();
    text.focus();
  };
  const attach = async ({ file }: { file: File }) => {
    say(`Attaching ${visible(file.name)}`);
    const path = `${FOLDER}/${Date.now().toString(36)}-${file.name.replace(/[^\w.-]+/g, "-").slice(-80)}`;
    await workspace.write(path, file, null);
    text.value = [text.value.trimEnd(), path].filter(Boolean).join("\n");
    text.dispatchEvent(new Event("input", { bubbles: true }));
  };
  form.addEventListener("submit", (event) => {
    if (!under) return said("");
    event.preventDefault();
    event.stopImmediatePropagation();
    say("Wait until the file is attached.");
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
