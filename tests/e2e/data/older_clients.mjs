// Parsing loops as clients of the older Goose API server have them, unchanged in what they assume.
// Usage: node older_clients.mjs LOOP URL BODY; prints the text that the loop puts together.
const [loop, url, body] = process.argv.slice(2);
const response = await fetch(url, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body,
});
const reader = response.body.getReader();
const decoder = new TextDecoder();
let text = "";
let buffer = "";

function take(line) {
  if (!line.startsWith("data: ")) return;
  try {
    const event = JSON.parse(line.slice(6));
    if (event.type === "message") text += event.content.content;
  } catch {
    // as such clients do: what does not parse is passed over
  }
}

for (;;) {
  const { done, value } = await reader.read();
  if (done) break;
  const chunk = decoder.decode(value, { stream: true });
  const mark = loop === "lines" ? "\n" : "\n\n";
  const parts = (buffer + chunk).split(mark);
  buffer = parts.pop();
  for (const part of parts) for (const line of part.split("\n")) take(line);
}
process.stdout.write(text);
