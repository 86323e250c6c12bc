// What components do alike: try something and say why it failed, and ask for what they show.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { isUnreached, wordsOf } from "./sse";

export type Attempt = (action: () => Promise<unknown>) => void;

/** Call `then` whenever the live stream is open again: the server can be reached. */
export function useLive(then: () => void): void {
  const newest = useRef(then);
  newest.current = then;
  useEffect(() => {
    const heard = () => newest.current();
    document.addEventListener("greylag:live", heard);
    return () => document.removeEventListener("greylag:live", heard);
  }, []);
}

/** Return how to do something, and what is `said` of it: why it failed, in the words of `told`. That the server could
 * not be reached is said until it can be.
 */
export function useAttempt(told = wordsOf) {
  const [{ said, isLost }, set] = useState({ said: "", isLost: false });
  const say = useCallback((said: string) => set({ said, isLost: false }), []);
  const attempt = useCallback<Attempt>((action) => {
    say("");
    action().catch((failure) => set({ said: told(failure), isLost: isUnreached(failure) }));
  }, []);
  useLive(() => isLost && say(""));
  return { said, say, attempt };
}

/** Have `take` get what `look` is answered, or `refuse` why it is not. For other `inputs` it looks again, and where the
 * server could not be reached, once it can be; `look` may ask whether its answer is still wanted, and asks nothing by null.
 */
export function useLook<T>(
  look: (isWanted: () => boolean) => Promise<T> | null, take: (answer: T) => void, refuse: (failure: unknown) => void, inputs: unknown[],
): void {
  const [again, setAgain] = useState(0);
  const [isLost, setLost] = useState(false);
  useEffect(() => {
    let wanted = true;
    setLost(false);
    look(() => wanted)?.then((answer) => wanted && take(answer), (failure) => {
      if (!wanted) return;
      setLost(isUnreached(failure));
      refuse(failure);
    });
    return () => { wanted = false; };
  }, [...inputs, again]);
  useLive(() => isLost && setAgain((count) => count + 1));
}

/** Look as `useLook` does, where there is a `look`, and have it said why nothing was seen, until there are other `inputs`. */
export function useAttemptedLook<T>(attempt: Attempt, look: (() => Promise<T>) | null, take: (answer: T) => void, inputs: unknown[]): void {
  const isSaid = useRef(false);
  const began = () => {
    if (look || isSaid.current) attempt(async () => {}); // nothing is said yet
    isSaid.current = false;
    return look && look();
  };
  const refuse = (failure: unknown) => {
    isSaid.current = true;
    attempt(() => Promise.reject(failure));
  };
  useLook(began, take, refuse, inputs);
}

/** Change a list and `load` it again, also where the change failed: it may have been done. */
export async function changing<T>(change: Promise<T>, load: () => Promise<unknown>): Promise<T> {
  const done = await change.catch((failure) => {
    load().catch(() => {}); // why the change failed is what is to be said, and at once
    throw failure;
  });
  await load();
  return done;
}

/** Return what `ask` is answered, or in the words of `told` why it is not; null until then. For other `inputs` it is
 * asked again; what it was answered stays meanwhile.
 */
export function useAnswer<T extends object>(ask: () => Promise<T>, inputs: unknown[], told = wordsOf): T | string | null {
  const [found, setFound] = useState<T | string | null>(null);
  useLook(ask, setFound, (failure) => setFound(told(failure)), inputs);
  return found;
}
