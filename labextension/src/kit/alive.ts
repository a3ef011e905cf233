/** Whether the kernel behind a view still answers: any answer will do, a refusal too. */
import type { Endings, Model } from "./host";
import { Refused, type Requests } from "./requests";

const ENDS = new Set(["autorestarting", "dead", "restarting", "terminating"]);
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
  let asked = 0; // a question that is lost is put again, but not before its time
  const check = (): void => {
    if (Date.now() - asked < SILENCE_MS) return;
    asked = Date.now();
    const late = setTimeout(() => heard(true), PATIENCE_MS);
    requests
      .ask("alive")
      .then(() => false, (error: unknown) => !(error instanceof Refused))
      .then((isGone) => (clearTimeout(late), (asked = 0), heard(isGone)));
    endings.add(() => clearTimeout(late));
  };
  endings.hear(model, "comm_live_update", check);
  // A kernel that comes back knows nothing of the view: it is another one.
  const changed = (_: unknown, status: string): void => void (ENDS.has(status) && heard(true));
  const { statusChanged } = model.widget_manager?.kernel ?? {};
  statusChanged?.connect(changed);
  endings.add(() => statusChanged?.disconnect(changed));
  const timer = setInterval(() => (wasGone || isWaiting()) && Date.now() - spoke > SILENCE_MS && check(), PATIENCE_MS);
  endings.add(() => clearInterval(timer));
  return () => heard(false);
}
