// The clipboard, also on pages over plain HTTP of another machine, which have none of their own.

/** Copy a text; tell whether the browser did. `text` may be on its way: the clipboard is asked for at once, while it may be. */
export async function copy(text: string | Promise<string>): Promise<boolean> {
  if (!navigator.clipboard) return copyByCommand(await text);
  const given = Promise.resolve(text).then((words) => new Blob([words], { type: "text/plain" }));
  const wrote = navigator.clipboard.write([new ClipboardItem({ "text/plain": given })]).then(() => true, () => false);
  await given; // why there is no text is worth telling
  return wrote;
}

function copyByCommand(text: string): boolean {
  let taken = false;
  const give = (event: ClipboardEvent) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    event.clipboardData?.setData("text/plain", text);
    taken = event.clipboardData !== null;
  };
  addEventListener("copy", give, { capture: true });
  document.execCommand("copy");
  removeEventListener("copy", give, { capture: true });
  return taken;
}
