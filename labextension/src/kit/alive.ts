/** Whether the kernel behind a view still answers: any answer will do, a refusal too. */
import type { Endings, Model } from "./host";
import { Refused, type Requests } from "./requests";

const PATIENCE_MS = 4000;
const SILENCE_MS = 15000;

/** Tells when the kernel stops answering, and when it does again. Call the result when it spoke. */
export function kernelWatch(model: Model, requests: Requests, endings: Endings, tell: (isGone: boolean) => void, isWaiting: () => boolean): () => void {
  let spoke = Date.now();
  let wasGone = false;
  const heard = (isGone: boolean): void => {
    if (!isGone) spoke = Date.now();
    if (isGone !== wasGone) tell((wasGone = isGone));
  };
  const check = (): void => {
    const late = setTimeout(() => heard(true), PATIENCE_MS);
    requests
      .ask("alive")
      .then(() => false, (error: unknown) => !(error instanceof Refused))
      .then((isGone) => (clearTimeout(late), heard(isGone)));
    endings.add(() => clearTimeout(late));
  };
  endings.hear(model, "comm_live_update", check);
  const timer = setInterval(() => (wasGone || isWaiting()) && Date.now() - spoke > SILENCE_MS && check(), PATIENCE_MS);
  endings.add(() => clearInterval(timer));
  return () => heard(false);
}
