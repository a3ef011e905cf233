import { expect, test } from "vitest";
import sample from "../samples/generation_view.json";
import { Generation, type Lane, type Measure, type Step, windowed } from "../src/views/generation_data";
import { generationView, type Asks } from "../src/views/generation_view";
import { Refused } from "../src/kit/requests";
import { FakeModel } from "./fake_model";
import { saved } from "./saved";

const soon = () => new Promise((done) => setTimeout(done, 40));

async function shown(further: Partial<Asks> = {}, lanes = sample.lanes as Lane[]) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const did: unknown[] = [];
  const view = generationView(el, {
    select: (step, layer) => did.push(["select", step, layer]),
    focus: (branch) => did.push(["focus", branch]),
    measure: (number) => did.push(["measure", number]),
    draft: (draft, isTyping) => did.push(["draft", draft, isTyping]),
    fork: (fork) => (did.push(["fork", fork]), Promise.resolve()),
    stop: () => (did.push(["stop"]), Promise.resolve()),
    steps: (branch, first) => Promise.resolve({ steps: (sample.steps[branch] as unknown as Step[]).slice(first, first + 2), more: first + 2 < sample.steps[branch]!.length }),
    ...further,
  });
  view.about({ title: sample.title, prompt: sample.prompt, layers: sample.layers, measures: sample.measures as Measure[], forks: true });
  view.lanes(lanes);
  await soon();
  return { el, view, did, tokens: () => [...el.querySelectorAll(".lanes tbody tr")].map((row) => [...row.querySelectorAll(".token")].map((token) => token.textContent)) };
}

const press = (el: HTMLElement, key: string) => el.querySelector(".lanes")?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const step = (token: string): Step => ({ ...(sample.steps[0]![0] as unknown as Step), token });

test("branches stand one below the other, aligned by step, tokens as text", async () => {
  const { el, tokens } = await shown();
  expect(tokens()).toEqual([["·in", "·Paris", "."], ["·Rome"]]);
  expect(el.querySelectorAll(".lanes tbody tr")[1]?.querySelectorAll(".shared").length).toBe(1);
  expect(el.querySelector(".prompt")?.textContent).toBe("The <b>");
  expect(el.querySelector(".prompt b")).toBeNull();
});

test("steps fill as they come, and those that were missed are asked for", async () => {
  const one = [{ ...sample.lanes[0], state: "running" }] as Lane[];
  let asked = 0;
  const { view, tokens, el } = await shown({ steps: () => Promise.resolve({ steps: asked++ ? [step("a"), step("b"), step("c")] : [], more: false }) }, one);
  expect(tokens()).toEqual([[]]);
  view.step(0, 0, step("a"));
  await soon();
  expect(tokens()).toEqual([["a"]]);
  view.step(0, 3, step("d"));
  await soon();
  expect(tokens()[0]?.length).toBeGreaterThan(1);
  expect(el.textContent).toContain("generating");
});

test("the arrow keys go over steps and branches, and tell", async () => {
  const { el, did } = await shown();
  press(el, "End");
  press(el, "ArrowLeft");
  press(el, "ArrowDown");
  expect(did).toEqual([["select", 2, undefined], ["select", 1, undefined], ["focus", 1], ["select", 1, undefined]]);
  expect(el.querySelector("[aria-selected=true]")?.getAttribute("aria-label")).toBe("step 1, ·Rome, probability 0.250, put there by the fork");
  expect(el.querySelectorAll(".pair .likely").length).toBe(2);
});

test("a generation whose kernel falls silent is cut off, and goes on when it speaks again", async () => {
  const { el, view } = await shown({}, [{ ...sample.lanes[0], state: "running" }] as Lane[]);
  const stop = () => [...el.querySelectorAll("button")].find((it) => it.textContent === "Stop")?.classList.contains("hidden");
  expect([el.textContent?.includes("generating …"), stop()]).toEqual([true, false]);
  view.unanswered(true);
  await soon();
  expect(el.textContent).toContain("cut off: what came so far is kept");
  expect(el.querySelector(".lanes tbody th.name")?.textContent).toContain(" · cut off");
  expect([el.textContent?.includes("generating …"), stop()]).toEqual([false, true]);
  view.unanswered(false);
  await soon();
  expect([el.textContent?.includes("generating …"), stop()]).toEqual([true, false]);
});

test("a fork that a dead kernel cannot hear says so in words of its own", async () => {
  const { el } = await shown({ fork: () => Promise.reject(new Error("Cannot send")) });
  press(el, "Home");
  press(el, "ArrowRight");
  (el.querySelector("[data-fork]") as HTMLElement).dispatchEvent(new MouseEvent("pointerdown", { bubbles: true }));
  (el.querySelector("[data-fork]") as HTMLElement).click();
  await soon();
  expect(el.querySelector("section .trouble")?.textContent).toContain("The fork could not be asked for: the kernel is gone.");
  expect(el.textContent).not.toContain("Cannot send");
});

test("a generation that cannot be forked says why, and offers none", async () => {
  const { el, view } = await shown();
  const about = { title: "", prompt: [], layers: [], measures: [] };
  press(el, "Home");
  press(el, "ArrowRight");
  const why = () => [...el.querySelectorAll("section > p.soft:not(.hidden)")].map((it) => it.textContent);
  expect(why()).toEqual([]);
  view.about({ ...about, forks: false, unforkable: "a fork runs the cell once more, and cannot: it calls <b>" });
  await soon();
  expect(why()).toEqual(["No forks: a fork runs the cell once more, and cannot: it calls <b>."]);
  expect(el.querySelector("form")?.classList.contains("hidden")).toBe(true);
  expect(el.querySelectorAll("[data-fork]").length).toBe(0);
  view.about({ ...about, forks: true, unforkable: "" });
  await soon();
  expect(why()).toEqual([]);
  expect(el.querySelectorAll("[data-fork]").length).toBeGreaterThan(0);
});

test("a likely token, a typed one or an edit forks at the step", async () => {
  const { el, did } = await shown();
  press(el, "Home");
  press(el, "ArrowRight");
  const buttons = [...el.querySelectorAll<HTMLButtonElement>(".likely button")];
  buttons.find((button) => button.textContent === "·Rome")?.click();
  const form = el.querySelector("form") as HTMLFormElement;
  (form.querySelector("[name=token]") as HTMLInputElement).value = " x";
  (form.querySelector("[name=edit]") as HTMLInputElement).value = "model.h[0] = 1";
  form.dispatchEvent(new Event("submit", { cancelable: true }));
  expect(did.filter((it) => (it as string[])[0] === "fork")).toEqual([
    ["fork", { branch: 0, step: 1, id: 5 }],
    ["fork", { branch: 0, step: 1, token: " x", edit: "model.h[0] = 1" }],
  ]);
});

test("a refusal is told in the view", async () => {
  const { el } = await shown({ fork: () => Promise.reject(new Refused({ what: "' x' is not one token.", why: "", next: "" })) });
  press(el, "ArrowLeft");
  [...el.querySelectorAll<HTMLButtonElement>(".likely button:not(:disabled)")][0]?.click();
  await soon();
  expect(el.querySelector(".trouble")?.textContent).toContain("is not one token");
});

test("a kernel that is gone and a branch that failed are clear states", async () => {
  const failed = [{ ...sample.lanes[0], state: "failed", trouble: { what: "it broke", why: "here", next: "" } }] as Lane[];
  const { el } = await shown({ steps: () => Promise.reject(new Error("gone")) }, failed);
  expect(el.querySelector(".trouble")?.textContent).toMatch(/could not be had|it broke/);
  const { el: other } = await shown({}, failed);
  expect(other.querySelector(".trouble")?.textContent).toContain("main: it broke");
});

test("Python's selection moves the cursor, and nothing at all is no trouble", async () => {
  const { el, view, did } = await shown();
  view.mark(1);
  await soon();
  expect(el.querySelector("[aria-selected=true]")?.textContent).toBe("·Paris");
  view.mark(null);
  view.mark(99);
  expect(did).toEqual([]);
  const { el: empty } = await shown({}, []);
  expect(empty.textContent).toContain("nothing generated yet");
});

test("the table behind has every branch's own steps", async () => {
  const { el } = await shown();
  const fold = el.querySelector("details.behind") as HTMLDetailsElement;
  fold.open = true;
  fold.dispatchEvent(new Event("toggle"));
  expect(fold.querySelectorAll("tbody tr").length).toBe(4);
});

test("the table and the file have every layer: of the measure shown, and of all", async () => {
  const { el } = await shown();
  const fold = el.querySelector("details.behind") as HTMLDetailsElement;
  fold.open = true;
  fold.dispatchEvent(new Event("toggle"));
  expect([...fold.querySelectorAll("thead th")].map((it) => it.textContent).slice(5)).toEqual(["likeliest", "probability, layer 0", "probability, layer 1"]);
  const first = sample.steps[0]![0]!;
  expect([...fold.querySelectorAll("tbody tr")[0]!.children].slice(6).map((it) => Number(it.textContent))).toEqual(first.values[0]!.map((it) => Number(it.toPrecision(4))));
  const rows = (await saved(el, "CSV")).text.split("\r\n");
  expect(rows[0]).toBe("branch,step,token,probability,entropy,likeliest,\"probability, layer 0\",\"probability, layer 1\"" + (first.texts.length ? ",\"likeliest, layer 0\",\"likeliest, layer 1\"" : ""));
  expect(rows[1]?.split(",").slice(6, 8).map(Number)).toEqual(first.values[0]);
});

test("the layers are saved as one picture, the entropy as another", async () => {
  const { el } = await shown();
  const group = (name: string) => el.querySelector(`[aria-label="Export ${name}"]`)?.parentElement as HTMLElement;
  expect((await saved(group("generation"), "SVG")).text).toContain('class="cell"');
  const { name, text } = await saved(group("entropy"), "SVG");
  expect(name).toBe("entropy.svg");
  expect(text).toContain("entropy (nats) by step");
});

test("a long text shows the steps around the one looked at", () => {
  expect(windowed(1000, 500, 60)).toEqual([470, 530]);
  expect(windowed(10, 3, 60)).toEqual([0, 10]);
  expect(windowed(100, 99, 60)).toEqual([40, 100]);
  const generation = new Generation();
  generation.lanes = [sample.lanes[0] as Lane];
  for (let n = 0; n < 5000; n++) expect(generation.put(0, n, step("a"))).toBe(true);
  expect(generation.length).toBe(5000);
});

test("of a generation of a million steps the first are fetched, and it says so", async () => {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  let asked = 0;
  const step = { token: "a", id: null, chance: null, entropy: null, top: [], texts: [], values: [], forced: false };
  const view = generationView(el, {
    select: () => undefined, focus: () => undefined, measure: () => undefined, draft: () => undefined, fork: () => Promise.resolve(), stop: () => Promise.resolve(),
    steps: () => (asked++, Promise.resolve({ steps: Array.from({ length: 2000 }, () => step), more: true })),
  });
  view.lanes([{ number: 0, parent: null, start: 0, why: "main", state: "done", trouble: null }]);
  for (let turn = 0; turn < 30; turn++) await new Promise((done) => setTimeout(done, 5));
  expect(asked).toBe(10);
  expect(el.textContent).toContain("the first 20,000 steps are here");
  expect(el.querySelectorAll("td").length).toBeLessThan(100);
});

test("a view that is built anew has the measure and what was typed of a fork", async () => {
  const { default: widget } = await import("../src/widgets/generation_view");
  const model = new FakeModel(
    { title: "", prompt: [], layers: sample.layers, measures: [...sample.measures, { quantity: "distance", unit: "nats", limits: null }], lanes: sample.lanes, forks: true, focus: 0, latest: {}, selection: {}, measure: 0, draft: {} },
    (name, given) => (name === "steps" ? { steps: sample.steps[given.branch as number]!.slice(given.first as number), more: false } : name === "fork" ? { branch: 2 } : undefined),
  );
  const opened = (): { el: HTMLElement; end: () => void; edit: HTMLInputElement; choice: HTMLSelectElement } => {
    const el = document.createElement("div");
    document.body.replaceChildren(el);
    const end = widget.render({ model, el });
    return { el, end, edit: el.querySelector("[name=edit]")!, choice: el.querySelector("select")! };
  };
  const first = opened();
  await soon();
  first.choice.selectedIndex = 1;
  first.choice.dispatchEvent(new Event("change"));
  first.edit.value = "model.h[0] =";
  first.edit.dispatchEvent(new Event("input", { bubbles: true }));
  expect(model.isSaved).toBe(false); // half a word is kept in the page
  first.end();
  const second = opened();
  await soon();
  expect([second.choice.selectedIndex, second.edit.value]).toEqual([1, "model.h[0] ="]);
  second.edit.dispatchEvent(new Event("change", { bubbles: true }));
  expect(model.isSaved).toBe(true);
  second.el.querySelector("form")!.dispatchEvent(new Event("submit", { cancelable: true }));
  await soon();
  expect([second.edit.value, model.state.draft]).toEqual(["", {}]); // it has been asked for
  model.set("measure", 0);
  expect(second.choice.selectedIndex).toBe(0);
  second.end();
  expect(model.listeners).toBe(0);
});
