import { kernelWatch } from "../kit/alive";
import { Endings, type Place } from "../kit/host";
import { latest, Requests } from "../kit/requests";
import { jobDock } from "../views/job_dock";
import type { Batch } from "../views/log_lines";
import type { JobState } from "../views/remote_log";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const newest = latest();
  let job = "";
  let early: Batch[] | null = null; // what comes before the lines that were there when a job was chosen
  const view = jobDock(el, {
    cancel: () => requests.ask("cancel", { job }),
    all: async () => new TextDecoder().decode((await requests.ask("all", { job })).buffers[0]),
    clear: () => requests.ask("clear"),
    choose(chosen) {
      job = chosen;
      early = [];
      if (model.get("chosen") !== job) {
        model.set("chosen", job);
        model.save_changes();
      }
      const start = (tail: Batch[]): void => {
        const batches = [...tail, ...(early ?? [])];
        early = null;
        batches.forEach((batch) => view.add(batch));
      };
      newest(requests.ask("tail", { job })).then(({ value }) => start([value as Batch]), () => start([]));
    },
  });
  const jobs = (): JobState[] => model.get("jobs") as JobState[];
  const chosen = (): void => view.setChosen(model.get("chosen") as string);
  const spoke = kernelWatch(model, requests, endings, (isGone) => view.setGone(isGone), () => jobs().some((one) => !one.over));
  endings.hear(model, "msg:custom", (content: { lines?: Batch; job?: string }) => {
    spoke();
    if (content.lines && content.job === job) early ? early.push(content.lines) : view.add(content.lines);
  });
  endings.hear(model, "change:jobs", () => (spoke(), view.setJobs(jobs())));
  endings.hear(model, "change:chosen", chosen);
  view.setJobs(jobs());
  chosen();
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
