import { widget } from "../kit/widget";
import type { Batch } from "../views/log_lines";
import { remoteLog, type JobState } from "../views/remote_log";

const PATIENCE_MS = 2000;

export default widget(({ el, endings, get, ask, answer, follow, expects, onSaid }) => {
  const view = remoteLog(el, {
    cancel: () => ask("cancel"),
    all: async () => new TextDecoder().decode((await answer("all")).buffers[0]),
  });
  let early: Batch[] | null = []; // what comes before the lines that were there when the view opened
  const start = (): void => {
    const batches = early ?? [];
    early = null;
    batches.forEach((batch) => view.add(batch));
  };
  onSaid<{ lines?: Batch }>(({ lines }) => {
    if (lines) early ? early.push(lines) : view.add(lines);
  });
  follow({ state: () => view.setState(get("state")) });
  expects(() => get<JobState>("state").phases.length > 0 && !get<JobState>("state").over);
  const late = setTimeout(start, PATIENCE_MS);
  ask<Batch>("tail").then(
    (tail) => (clearTimeout(late), view.add(tail), start()),
    () => (clearTimeout(late), start()),
  );
  endings.add(() => clearTimeout(late));
  return view;
});
