import { expect, test, vi } from "vitest";
import sample from "../samples/remote_log.json";
import { jobDock } from "../src/views/job_dock";
import { Lines, LINES_MAX, type Batch } from "../src/views/log_lines";
import { remoteLog, type JobState } from "../src/views/remote_log";
import widget from "../src/widgets/remote_log";
import { FakeModel } from "./fake_model";

const state = sample.state as JobState;
const batch = (first: number, texts: string[], tags: Record<string, string[]> = {}): Batch => ({ first, times: texts.map((_, n) => first + n), texts, tags });
const numbered = (first: number, count: number): Batch => batch(first, Array.from({ length: count }, (_, n) => `line ${first + n}`));
const frame = (): Promise<unknown> => new Promise((done) => requestAnimationFrame(done));

function shown(given: JobState = state) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const cancel = vi.fn(() => Promise.resolve());
  const view = remoteLog(el, { cancel, all: () => Promise.resolve("all of it") });
  view.setState(given);
  view.add(sample.batch);
  const rows = () => [...el.querySelectorAll('[role="option"]')] as HTMLElement[];
  const said = () => rows().map((row) => row.querySelector(".said")?.textContent);
  const press = (key: string) => el.querySelector('[role="listbox"]')?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const button = (name: string) => [...el.querySelectorAll("button")].find((it) => it.textContent?.startsWith(name)) as HTMLButtonElement;
  const choose = (box: string, value: string, event: string) => {
    const it = el.querySelector(box) as HTMLInputElement;
    it.value = value;
    it.dispatchEvent(new Event(event));
  };
  return { el, view, cancel, rows, said, press, button, choose };
}

test("the phases are told, with the place in the queue and what is still to come", () => {
  const { el } = shown({ ...state, phases: state.phases.slice(0, 3), queue: [3, 9], over: false });
  const phases = [...el.querySelectorAll(".phases li")].map((phase) => phase.textContent);
  expect(phases.map((words) => words?.split(" ")[1])).toEqual(["RECEIVED", "APPROVED", "QUEUED", "RUNNING", "COMPLETED"]);
  expect(phases[2]).toContain("(3 of 9)");
  expect(el.querySelector('[aria-current="step"]')?.textContent).toContain("QUEUED");
});

test("the lines of python's sample are listed with their levels in words", async () => {
  const { el, said } = shown();
  await frame();
  expect(said()).toEqual(sample.batch.texts.map((text) => text.trimEnd()));
  expect([...el.querySelectorAll('.row [role="img"]')].map((sign) => sign.getAttribute("aria-label"))).toContain("warning");
});

test("a search, a tag and a level each leave the lines they mean", async () => {
  const { said, choose, button } = shown();
  choose("input", "LOSS", "input");
  await frame();
  expect(said()).toEqual(sample.batch.texts.filter((text) => text.includes("loss")).map((text) => text.trimEnd()));
  choose("input", "", "input");
  button("train").click();
  await frame();
  expect(said()).toHaveLength(Object.values(sample.batch.tags).filter((tags) => tags.includes("train")).length);
  button("train").click();
  choose("select", "error", "change");
  await frame();
  expect(said()).toEqual(sample.batch.texts.filter((_, n) => (sample.batch.tags as Record<string, string[]>)[n]?.includes("error")));
});

test("a line is text, whatever it holds, and its control characters are named", async () => {
  const { el, view, said } = shown();
  view.add(batch(sample.batch.texts.length, ["<img src=x onerror=alert(1)> \u202e\u0007"]));
  await frame();
  expect(el.querySelector("img")).toBeNull();
  expect(said().pop()).toContain("\\u202e\\u0007");
});

test("what came too fast is counted, and said where it is missing", async () => {
  const { el, view, said } = shown();
  view.add(batch(1000, ["after"]));
  await frame();
  expect(said().slice(-2)[0]).toMatch(/… \d+ lines came too fast/);
  expect(el.textContent).toContain(`${1000 - sample.batch.texts.length} dropped`);
});

test("lines that come twice, as after a page was reloaded, are listed once", () => {
  const lines = new Lines();
  lines.add(numbered(0, 5));
  lines.add(numbered(3, 4));
  lines.add(numbered(0, 2));
  expect(lines.all.map((line) => line.text)).toEqual([0, 1, 2, 3, 4, 5, 6].map((n) => `line ${n}`));
  expect(lines.dropped).toBe(0);
});

test("lines from before the view are listed first, however late they are told", async () => {
  const lines = new Lines();
  lines.add(numbered(3, 2));
  lines.seek("line");
  expect(lines.add(numbered(0, 6))).toBe(-3);
  expect(lines.all.map((line) => line.number)).toEqual([0, 1, 2, 3, 4, 5]);
  expect(lines.shown).toHaveLength(6);
  expect([lines.heard, lines.dropped, lines.began]).toEqual([6, 0, 0]);

  const { said, view } = shown({ ...state, over: true });
  view.clear();
  view.add(numbered(3, 2));
  view.add(numbered(0, 5));
  await frame();
  expect(said()).toEqual([0, 1, 2, 3, 4].map((n) => `line ${n}`));
});

test("a kernel too busy to tell the lines in time is heard all the same", async () => {
  vi.useFakeTimers();
  const model = new FakeModel({ state });
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const end = widget.render({ model, el });
  await vi.advanceTimersByTimeAsync(10_000);
  model.tell("msg:custom", { lines: numbered(3, 1) });
  const asked = model.sent.find((it) => it.name === "tail");
  model.tell("msg:custom", { answer: asked?.ask, value: numbered(0, 4) });
  await vi.advanceTimersByTimeAsync(100);
  expect([...el.querySelectorAll(".said")].map((it) => it.textContent)).toEqual([0, 1, 2, 3].map((n) => `line ${n}`));
  end();
  vi.useRealTimers();
});

test("ten thousand lines a second keep the last five thousand, and a screen of them in the page", async () => {
  const { view, rows, el } = shown();
  const began = performance.now();
  for (let first = 100; first < 100_100; first += 500) view.add(numbered(first, 500));
  await frame();
  const seconds = (performance.now() - began) / 1000;
  expect(100_000 / seconds).toBeGreaterThan(50_000);
  expect(rows().length).toBeLessThan(60);
  expect(el.textContent).toContain("the last 5,000 here");
  const lines = new Lines();
  for (let first = 0; first < 20_000; first += 1000) lines.add(numbered(first, 1000));
  expect(lines.all).toHaveLength(LINES_MAX);
});

test("arrows walk the lines, which stops following; End follows again", async () => {
  const { el, press, button, view } = shown();
  press("ArrowUp");
  press("ArrowUp");
  await frame();
  expect(button("Follow").getAttribute("aria-pressed")).toBe("false");
  expect(el.querySelector(".detail")?.textContent).toContain(sample.batch.texts[sample.batch.texts.length - 2]);
  view.add(batch(sample.batch.texts.length, ["one", "two"]));
  await frame();
  expect(button("Follow").textContent).toBe("Follow (2 new)");
  press("End");
  await frame();
  expect(button("Follow").getAttribute("aria-pressed")).toBe("true");
});

test("cancelling asks twice, and says what went wrong", async () => {
  const { el, cancel, button } = shown({ ...state, cancel: "can", over: false });
  button("Cancel").click();
  expect(cancel).not.toHaveBeenCalled();
  cancel.mockReturnValue(Promise.reject(new Error("no way")));
  button("Really").click();
  await vi.waitFor(() => expect(el.querySelector(".trouble")?.textContent).toContain("no way"));
  expect(cancel).toHaveBeenCalledOnce();
});

test("a job that is over cannot be cancelled", () => {
  expect(shown({ ...state, cancel: "", over: true }).el.querySelector("button.hidden")?.textContent).toBe("Cancel");
});

test("progress has a bar, words for who cannot see it, and no end where none is known", () => {
  const { el } = shown({ ...state, progress: [["Downloading result", 257_000, 514_000, "bytes"], ["tokens", 12, null, ""]] });
  const bars = [...el.querySelectorAll("progress")];
  expect(bars.map((bar) => bar.getAttribute("aria-label"))).toEqual(["Downloading result: 257 kB of 514 kB (50 %)", "tokens: 12"]);
  expect(bars[1]?.hasAttribute("value")).toBe(false);
});

test("a kernel that is gone is said, and the log stays", async () => {
  const { el, view, rows } = shown();
  view.setGone(true);
  await frame();
  expect(el.querySelector('[role="alert"]')?.textContent).toContain("does not answer");
  expect(rows().length).toBeGreaterThan(0);
  view.setGone(false);
  expect(el.querySelector('[role="alert"]')).toBeNull();
});

test("no job and no lines is a state of its own", () => {
  const { el } = shown({ ...state, job: "", title: "", phases: [], progress: [], queue: null });
  expect(el.textContent).toContain("No job yet");
});

test("a dock lists jobs by phase, and shows the log of the one that is chosen", async () => {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const chosen: string[] = [];
  const asks = { cancel: () => Promise.resolve(), all: () => Promise.resolve(""), clear: () => Promise.resolve(), choose: (job: string) => chosen.push(job) };
  const view = jobDock(el, asks);
  view.setJobs([{ ...state, job: "a", title: "first", over: false, queue: null }, { ...state, job: "b", title: "second", phases: [["ERROR", 9, "no"]], over: true, queue: null }]);
  view.setChosen("a");
  view.add(batch(0, ["of the first"]));
  await frame();
  expect(el.querySelector(".said")?.textContent).toBe("of the first");
  el.querySelector(".list")?.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
  await frame();
  expect(chosen).toEqual(["a", "b"]);
  expect(el.querySelector(".said")).toBeNull();
  expect(el.querySelectorAll(".list .failed")).toHaveLength(1);
  expect(el.querySelector(".insitu-remote_log b")?.textContent).toBe("second");
});
