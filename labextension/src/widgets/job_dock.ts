import { latest } from "../kit/requests";
import { widget } from "../kit/widget";
import { jobDock } from "../views/job_dock";
import type { Batch } from "../views/log_lines";
import type { JobState } from "../views/remote_log";

export default widget(({ el, get, put, ask, answer, follow, expects, onSaid }) => {
  const newest = latest();
  let job = "";
  let early: Batch[] | null = null; // what comes before the lines that were there when a job was chosen
  const view = jobDock(el, {
    cancel: () => ask("cancel", { job }),
    all: async () => new TextDecoder().decode((await answer("all", { job })).buffers[0]),
    clear: () => ask("clear"),
    choose(chosen) {
      job = chosen;
      early = [];
      if (get("chosen") !== job) put("chosen", job);
      const start = (tail: Batch[]): void => {
        const batches = [...tail, ...(early ?? [])];
        early = null;
        batches.forEach((batch) => view.add(batch));
      };
      newest(ask<Batch>("tail", { job })).then((tail) => start([tail]), () => start([]));
    },
  });
  onSaid<{ lines?: Batch; job?: string }>((content) => {
    if (content.lines && content.job === job) early ? early.push(content.lines) : view.add(content.lines);
  });
  follow({ jobs: () => view.setJobs(get("jobs")), chosen: () => view.setChosen(get("chosen")) });
  expects(() => get<JobState[]>("jobs").some((one) => !one.over));
  return view;
});
