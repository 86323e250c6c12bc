// Code in an answer, with its language, a button that copies it, and its colours once it is whole.
import { Component, type ComponentChild } from "preact";
import { useEffect, useState } from "preact/hooks";
import { copy } from "./clipboard";
import { highlight } from "./highlight";
import { visible } from "./text";

const MOST_HIGHLIGHTED = 60_000;

/** Text that copies itself. */
export function CopyButton({ text, label = "Copy" }: { text: string; label?: string }) {
  const [said, say] = useState("");
  const press = async () => {
    say((await copy(text)) ? "Copied" : "Not copied");
    setTimeout(() => say(""), 2000);
  };
  return <button type="button" class="btn-text" onClick={press}>{said || label}</button>;
}

/** Return `text` coloured as `language`, plain text until the highlighter is there. */
export function useHighlighted(text: string, language: string, wanted: boolean): ComponentChild {
  const [coloured, setColoured] = useState<ComponentChild>(null);
  useEffect(() => {
    let current = true;
    setColoured(null);
    if (wanted && language && text.length <= MOST_HIGHLIGHTED) {
      void highlight(visible(text), language, () => current).then((view) => current && setColoured(view));
    }
    return () => { current = false; };
  }, [text, language, wanted]);
  return coloured;
}

/** `parts` make up the code; all but the last stay as they are. */
export function CodeBlock({ language, parts, closed }: { language: string; parts: string[]; closed: boolean }) {
  const name = language.trim().split(/\s+/)[0]?.toLowerCase() ?? "";
  const text = closed ? parts.join("") : "";
  const coloured = useHighlighted(text, name, closed);
  return (
    <figure class="code-block">
      <figcaption>{visible(name) || "text"}{closed && <CopyButton text={text} />}</figcaption>
      <pre class="code" tabIndex={0} dir="ltr"><code>
        {coloured ?? parts.map((part, index) => <Part key={index} text={part} />)}
      </code></pre>
    </figure>
  );
}

/** Passed over by the frames in which it is the same: there are thousands of them in long code. */
class Part extends Component<{ text: string }> {
  override shouldComponentUpdate(next: { text: string }): boolean {
    return next.text !== this.props.text;
  }

  override render({ text }: { text: string }) {
    return <span class="code-part">{visible(text)}</span>;
  }
}
