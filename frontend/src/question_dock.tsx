// A question of the agent that is out of sight is told above the composer, and led to from there.
import { type ComponentChildren, type RefObject, render } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";

/** While `place` is out of its scroller's sight, show `title` in the dock, with a button that leads to it. */
export function useDock(place: RefObject<HTMLElement | null>, title: ComponentChildren): void {
  const [away, setAway] = useState(false);
  const row = useMemo(() => Object.assign(document.createElement("div"), { className: "dock-row" }), []);
  useEffect(() => {
    document.getElementById("question-dock")?.append(row);
    const root = document.getElementById("scroller");
    const seen = new IntersectionObserver((entries) => setAway(!entries.at(-1)?.isIntersecting), { root });
    seen.observe(place.current!);
    return () => {
      seen.disconnect();
      row.remove();
    };
  }, []);
  useEffect(() => render(away ? <Docked title={title} onLook={() => lead(place.current)} /> : null, row));
}

/** Lead to the first question that waits; return whether there is one. */
export function leadToQuestion(): boolean {
  return lead(document.querySelector<HTMLElement>(".ask"));
}

/** Lead on from a question that has been answered: to the next one, else to the composer. */
export function leadOn(from: HTMLElement | null): void {
  const next = [...document.querySelectorAll<HTMLElement>(".ask")].find((one) => one !== from && one.querySelector(".btn-primary:enabled"));
  if (!lead(next ?? null)) document.getElementById("message")?.focus({ preventScroll: true });
}

function lead(question: HTMLElement | null): boolean {
  const allow = question?.querySelector<HTMLButtonElement>(".btn-primary:enabled");
  allow?.focus({ preventScroll: true });
  question?.scrollIntoView({ block: "center" });
  return Boolean(allow);
}

function Docked({ title, onLook }: { title: ComponentChildren; onLook: () => void }) {
  return (
    <>
      <p>The agent asks: {title}?</p>
      <button type="button" class="btn btn-small btn-primary" onClick={onLook}>Look at it</button>
    </>
  );
}
