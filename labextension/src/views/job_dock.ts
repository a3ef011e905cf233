/** Several jobs as a list with their phases, and beside it the log of the one that is chosen. */
import { clicks, h, update, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Endings } from "../kit/host";
import { root } from "../kit/sheet";
import { compact } from "../kit/table";
import type { Batch } from "./log_lines";
import { duration, ENDS, remoteLog, type Asks as LogAsks, type JobState } from "./remote_log";

export interface Asks extends LogAsks {
  choose(job: string): void;
  clear(): Promise<unknown>;
}

export interface JobDockView {
  setJobs(jobs: JobState[]): void;
  setChosen(job: string): void;
  add(batch: Batch): void;
  setGone(isGone: boolean): void;
  end(): void;
}

const SHEET = `
.insitu-job_dock .halves{display:grid;grid-template-columns:minmax(11rem,16rem) minmax(0,1fr);gap:12px}
.insitu-job_dock .list{max-height:440px;overflow:auto;border:1px solid var(--rule);border-radius:4px}
.insitu-job_dock .job{padding:4px 8px;cursor:default;border-left:3px solid transparent;border-bottom:1px solid var(--rule)}
.insitu-job_dock .job:hover{background:var(--tint)}
.insitu-job_dock .job[aria-selected=true]{background:var(--tint);border-left-color:var(--blue)}
.insitu-job_dock .job div{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.insitu-job_dock .job .runs{color:var(--blue)}.insitu-job_dock .job .failed{color:var(--orange)}
.insitu-job_dock .insitu-remote_log{padding:0}
.insitu-job_dock .insitu-remote_log input[type=search]{min-width:8rem;width:9rem}.insitu-job_dock .insitu-remote_log select{max-width:7rem}
@media (max-width:640px){.insitu-job_dock .halves{grid-template-columns:1fr}}
`;

export function jobDock(el: HTMLElement, asks: Asks): JobDockView {
  const endings = new Endings();
  const view = root(el, "job_dock", SHEET);
  let jobs: JobState[] = [];
  let chosen = "";

  const count = h("b");
  const clear = h("button", { type: "button", title: "Take the jobs that have ended out of the list", click: () => void asks.clear().catch(() => undefined) }, "Clear ended");
  const list = h("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Jobs" });
  const place = h("div");
  view.append(h("div", { class: "bar" }, count, clear, h("span", { class: "grow" }), exporting({ name: "jobs", rows: table })), h("div", { class: "halves" }, list, place));
  const log = remoteLog(place, asks);
  endings.add(() => log.end());

  function table(): (string | number)[][] {
    const line = (job: JobState): (string | number)[] => {
      const [phase, began] = job.phases[job.phases.length - 1] ?? ["", ""];
      const last = job.progress[job.progress.length - 1];
      return [job.job, job.title, phase, job.phases[0]?.[1] ?? "", began, last?.[1] ?? "", last?.[2] ?? ""];
    };
    return [["job", "title", "phase", "began", "phase_began", "done", "of"], ...jobs.map(line)];
  }

  function draw(): void {
    const running = jobs.filter((job) => !job.over).length;
    count.textContent = `${compact(jobs.length)} ${jobs.length === 1 ? "job" : "jobs"}${running ? `, ${compact(running)} running` : ""}`;
    clear.disabled = running === jobs.length;
    update(list, ...(jobs.length ? jobs.map(entry) : [h("div", { class: "soft job" }, "No jobs yet: dock.add(job)")]));
    if (chosen) list.setAttribute("aria-activedescendant", idOf(chosen));
  }

  function entry(job: JobState): HTMLElement {
    const [phase, began] = job.phases[job.phases.length - 1] ?? ["no word yet", 0];
    const isFailed = ENDS.indexOf(phase) > 0;
    const start = job.phases[0]?.[1] ?? began;
    const last = job.progress[job.progress.length - 1];
    const told = [
      phase,
      job.queue && `${compact(job.queue[0])}${job.queue[1] ? ` of ${compact(job.queue[1])}` : ""} in the queue`,
      !job.over && last?.[2] ? `${Math.floor((100 * last[1]) / last[2])} %` : "",
      job.phases.length > 0 && duration(Math.max((job.over ? began : Math.max(Date.now() / 1000, job.now)) - start, 0)),
    ].filter(Boolean);
    const sign = isFailed ? "✕ " : job.over ? "● " : "◉ ";
    return h(
      "div",
      { class: "job", role: "option", id: idOf(job.job), "aria-selected": String(job.job === chosen), "data-job": job.job },
      h("div", {}, h("span", { class: isFailed ? "failed" : job.over ? "soft" : "runs", "aria-hidden": "true" }, sign), visible(job.title)),
      h("div", { class: "soft" }, told.join(" · ")),
    );
  }

  function idOf(job: string): string {
    return `${key}-${jobs.findIndex((other) => other.job === job)}`;
  }

  function choose(job: string): void {
    if (job === chosen) return;
    chosen = job;
    log.clear();
    draw();
    tell();
    asks.choose(job);
  }

  function tell(): void {
    const state = jobs.find((job) => job.job === chosen);
    if (state) log.setState(state);
  }

  clicks(list, "data-job", choose, endings);
  endings.listen(list, "keydown", (event) => {
    const at = jobs.findIndex((job) => job.job === chosen);
    const goals: Record<string, number> = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: jobs.length - 1 };
    const goal = goals[(event as KeyboardEvent).key];
    if (goal === undefined) return;
    event.preventDefault();
    const job = jobs[Math.min(Math.max(goal, 0), jobs.length - 1)];
    if (job) choose(job.job);
    list.querySelector('[aria-selected="true"]')?.scrollIntoView?.({ block: "nearest" });
  });
  const tick = setInterval(() => jobs.some((job) => !job.over) && draw(), 1000);
  endings.add(() => clearInterval(tick));

  return {
    setJobs(given) {
      jobs = given;
      draw();
      tell();
    },
    setChosen(job) {
      if (job !== chosen) choose(job);
    },
    add: (batch) => log.add(batch),
    setGone: (isGone) => log.setGone(isGone),
    end: () => endings.run(),
  };
}

const key = `jobs${Math.random().toString(36).slice(2, 8)}`;
