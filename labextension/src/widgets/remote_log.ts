import { kernelWatch } from "../kit/alive";
import { Endings, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import type { Batch } from "../views/log_lines";
import { remoteLog, type JobState } from "../views/remote_log";

const PATIENCE_MS = 2000;

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const view = remoteLog(el, {
    cancel: () => requests.ask("cancel"),
    all: async () => new TextDecoder().decode((await requests.ask("all")).buffers[0]),
  });
  const state = (): JobState => model.get("state") as JobState;
  const spoke = kernelWatch(model, requests, endings, (isGone) => view.setGone(isGone), () => state().phases.length > 0 && !state().over);
  let early: Batch[] | null = []; // what comes before the lines that were there when the view opened
  const start = (): void => {
    const batches = early ?? [];
    early = null;
    batches.forEach((batch) => view.add(batch));
  };
  endings.hear(model, "msg:custom", (content: { lines?: Batch }) => {
    spoke();
    if (content.lines) early ? early.push(content.lines) : view.add(content.lines);
  });
  endings.hear(model, "change:state", () => (spoke(), view.setState(state())));
  view.setState(state());
  const late = setTimeout(start, PATIENCE_MS);
  requests.ask("tail").then(
    ({ value }) => (clearTimeout(late), early && view.add(value as Batch), start()),
    () => (clearTimeout(late), start()),
  );
  endings.add(() => clearTimeout(late));
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
