// What components do alike: try something and say why it failed, and ask for what they show.
import { useCallback, useEffect, useState } from "preact/hooks";
import { wordsOf } from "./sse";

export type Attempt = (action: () => Promise<unknown>) => void;

/** Return how to do something, and what is `said` of it: why it failed, in the words of `told`. */
export function useAttempt(told = wordsOf) {
  const [said, say] = useState("");
  const attempt = useCallback<Attempt>((action) => {
    say("");
    action().catch((failure) => say(told(failure)));
  }, []);
  return { said, say, attempt };
}

/** Return what `ask` is answered, or in the words of `told` why it is not; null until then. For other `inputs` it is
 * asked again; what it was answered stays meanwhile.
 */
export function useAnswer<T extends object>(ask: () => Promise<T>, inputs: unknown[], told = wordsOf): T | string | null {
  const [found, setFound] = useState<T | string | null>(null);
  useEffect(() => {
    let current = true;
    ask().then((answer) => current && setFound(answer), (failure) => current && setFound(told(failure)));
    return () => { current = false; };
  }, inputs);
  return found;
}
