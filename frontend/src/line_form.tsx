// A form of one line, which comes where it is asked for and goes when it is done.
import { useLayoutEffect, useRef } from "preact/hooks";
import { isComposing } from "./text";

interface LineFormProps {
  label: string;
  verb: string;
  value: string;
  style?: string;
  onDone: (text: string) => void;
  onLeave: () => void;
}

export function LineForm({ label, verb, value, style = "input", onDone, onLeave }: LineFormProps) {
  const input = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => input.current?.select(), []); // before a key can reach it
  const done = (event: Event) => {
    event.preventDefault();
    onDone(input.current?.value.trim() ?? "");
  };
  return (
    <form class="name-form" onSubmit={done} onKeyDown={(event) => event.key === "Escape" && !isComposing(event) && onLeave()}>
      <input ref={input} class={style} aria-label={label} defaultValue={value} placeholder={label} pattern=".*\S.*" required maxLength={2000} />
      <button class="btn btn-small btn-primary">{verb}</button>
      <button type="button" class="btn btn-small" onClick={onLeave}>Cancel</button>
    </form>
  );
}
