import { expect, test } from "vitest";
import sample from "../samples/job_dock.json";
import { jobDock } from "../src/views/job_dock";
import type { JobState } from "../src/views/remote_log";
import { saved } from "./saved";

const jobs = sample.jobs as unknown as JobState[];

function shown(given = jobs) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const did: string[] = [];
  const view = jobDock(el, {
    choose: (job) => did.push(`choose ${job}`), clear: () => (did.push("clear"), Promise.resolve()), cancel: () => Promise.resolve(), all: () => Promise.resolve(""),
  });
  view.setJobs(given);
  view.setChosen(given.length ? sample.chosen : "");
  const entries = () => [...el.querySelectorAll<HTMLElement>("[role=option]")];
  const press = (key: string) => el.querySelector("[role=listbox]")?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  return { el, view, did, entries, press };
}

test("what Python sends is shown: each job with its phase, how far it is and how long it took", () => {
  const { el, view, entries } = shown();
  expect(el.querySelector("b")?.textContent).toBe("2 jobs, 1 running");
  const [first, second] = entries().map((it) => it.textContent ?? "");
  expect(first).toMatch(/^◉ aRUNNING · 33 % · /);
  expect(second).toMatch(/^● bCOMPLETED · 3(\.0)? s$/);
  expect(entries().map((it) => it.getAttribute("aria-selected"))).toEqual(["true", "false"]);
  view.end();
});

test("keys and clicks choose a job once, and its log begins empty", () => {
  const { view, did, entries, press } = shown();
  press("ArrowDown");
  press("End");
  entries()[0]?.click();
  expect(did).toEqual(["choose a", "choose b", "choose a"]);
  view.end();
});

test("its lines go into the log of the chosen one, and its CSV has a row a job", async () => {
  const { el, view } = shown();
  const rows = (await saved(el, "CSV")).text.split("\r\n");
  expect(rows).toEqual(["job,title,phase,began,phase_began,done,of", "a,a,RUNNING,10,10,3,9", "b,b,COMPLETED,5,8,,"]);
  view.end();
});

test("jobs that have ended can be taken out, where there are any", () => {
  const { el, view, did } = shown();
  const clear = [...el.querySelectorAll("button")].find((it) => it.textContent === "Clear ended") as HTMLButtonElement;
  clear.click();
  expect(did.at(-1)).toBe("clear");
  view.setJobs(jobs.slice(0, 1));
  expect(clear.disabled).toBe(true);
  view.end();
});

test("without jobs it says how one comes in", () => {
  const { el, view } = shown([]);
  expect(el.textContent).toContain("No jobs yet: dock.add(job)");
  view.end();
});
