/** A click is a press and a letting go: what is told in between must not lose it, nor give it to another. */
import { afterEach, expect, test, vi } from "vitest";
import dockSample from "../samples/job_dock.json";
import generationSample from "../samples/generation_view.json";
import { h, update } from "../src/kit/dom";
import { generationView } from "../src/views/generation_view";
import type { Lane, Step } from "../src/views/generation_data";
import { jobDock } from "../src/views/job_dock";
import type { JobState } from "../src/views/remote_log";

afterEach(() => vi.useRealTimers());

const jobs = dockSample.jobs as unknown as JobState[];

function press(element: Element): () => void {
  element.dispatchEvent(new PointerEvent("pointerdown", { bubbles: true, button: 0 }));
  // As a browser does: a click is told of where it was pressed, if that is there still.
  return () => element.isConnected && element.dispatchEvent(new MouseEvent("click", { bubbles: true, detail: 1 }));
}

function dock() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const chosen: string[] = [];
  const view = jobDock(el, { choose: (job) => chosen.push(job), clear: () => Promise.resolve(), cancel: () => Promise.resolve(), all: () => Promise.resolve("") });
  view.setJobs(jobs);
  view.setChosen("a");
  const entry = (title: string) => [...el.querySelectorAll("[role=option]")].find((it) => it.textContent?.includes(title)) as HTMLElement;
  return { el, view, chosen, entry };
}

test("a job that is pressed is chosen, whatever is told of jobs before the button is let go", () => {
  const { view, chosen, entry } = dock();
  const release = press(entry("b").firstElementChild as Element);
  view.setJobs(jobs.map((job) => ({ ...job, now: job.now + 7, progress: [["steps", 4, 9, ""]] })) as JobState[]);
  release();
  expect(chosen).toEqual(["a", "b"]);
  view.end();
});

test("a job that is pressed is chosen even where another stands in its place by then", () => {
  const { view, chosen, entry } = dock();
  const release = press(entry("b"));
  view.setJobs([jobs[0], { ...jobs[1], job: "c", title: "c" }, jobs[1]] as JobState[]);
  release();
  expect(chosen).toEqual(["a", "b"]);
  view.end();
});

test("the list of jobs stays the same elements as time goes by", () => {
  vi.useFakeTimers();
  const { el, view } = dock();
  const before = [...el.querySelectorAll("[role=option], [role=option] div")];
  vi.advanceTimersByTime(5000);
  const after = [...el.querySelectorAll("[role=option], [role=option] div")];
  expect(after.length).toBe(before.length);
  expect(after.every((it, index) => it === before[index])).toBe(true);
  view.end();
});

async function generated() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const did: unknown[][] = [];
  const view = generationView(el, {
    select: (...at) => did.push(["select", ...at]), focus: (branch) => did.push(["focus", branch]), measure: () => undefined, draft: () => undefined,
    fork: (fork) => (did.push(["fork", fork]), Promise.resolve()), stop: () => Promise.resolve(), steps: () => Promise.resolve({ steps: [], more: false }),
  });
  const { title, prompt, layers, measures } = generationSample;
  view.about({ title, prompt, layers, measures, forks: true } as Parameters<typeof view.about>[0]);
  view.lanes([{ ...generationSample.lanes[0], state: "running" }] as Lane[]);
  const step = { token: "a", id: 1, chance: 0.5, entropy: 1, top: [["b", 2, 0.25], ["a", 1, 0.5]], texts: [], values: [], forced: false } as Step;
  let number = 0;
  const comes = async (further: Partial<Step> = {}) => (view.step(0, number++, { ...step, ...further }), await new Promise((done) => setTimeout(done, 40)));
  for (let count = 0; count < 3; count++) await comes();
  return { el, view, did, comes };
}

test("a token that is pressed while others come is the one that is gone to", async () => {
  const { el, did, comes, view } = await generated();
  const release = press(el.querySelectorAll(".lanes .token")[1] as Element);
  await comes();
  release();
  expect(did).toEqual([["select", 1]]);
  view.end();
});

test("a likely token that is pressed while others come is forked with, at its step", async () => {
  const { el, did, comes, view } = await generated();
  const release = press(el.querySelector(".likely button") as Element);
  await comes({ top: [["c", 3, 0.9], ["a", 1, 0.5]] });
  release();
  expect(did).toEqual([["fork", { branch: 0, step: 2, id: 2 }]]);
  view.end();
});

test("a key that clicks a likely token clicks the one that is there", async () => {
  const { el, did, view } = await generated();
  (el.querySelector(".likely button") as HTMLElement).click();
  expect(did).toEqual([["fork", { branch: 0, step: 2, id: 2 }]]);
  view.end();
});

test("what is updated keeps its elements, and has the attributes and texts it would have had", () => {
  const parent = h("div", {}, h("p", { class: "a", title: "x" }, "one", h("b", {}, "two")), h("i", {}, "gone"));
  const [paragraph, bold] = [parent.firstElementChild, parent.querySelector("b")];
  update(parent, h("p", { class: "b", id: "y" }, "three", h("b", {}, "four"), h("u", {}, "new")));
  expect([parent.firstElementChild, parent.querySelector("b")]).toEqual([paragraph, bold]);
  expect(parent.outerHTML).toBe('<div><p class="b" id="y">three<b>four</b><u>new</u></p></div>');
  update(parent, "text", h("span", {}));
  expect(parent.outerHTML).toBe("<div>text<span></span></div>");
});
