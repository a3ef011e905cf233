import { afterEach, beforeEach, expect, test, vi } from "vitest";
import ledgerSample from "../samples/run_ledger.json";
import sourceSample from "../samples/source_browser.json";
import treeSample from "../samples/module_tree.json";
import { h } from "../src/kit/dom";
import { root } from "../src/kit/sheet";
import { type Opened, widget } from "../src/kit/widget";
import generation from "../src/widgets/generation_view";
import ledger from "../src/widgets/run_ledger";
import source from "../src/widgets/source_browser";
import tree from "../src/widgets/module_tree";
import { FakeModel } from "./fake_model";
import { sent } from "./nodes";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

const settle = () => vi.advanceTimersByTimeAsync(300);

function opened(open: (opened: Opened) => void, model = new FakeModel({ selection: { layer: 3 } })) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  let ended = 0;
  const end = widget((given) => {
    root(given.el, "some").append(h("p", {}, "what it told"));
    open(given);
    return { end: () => ended++ };
  }).render({ model, el });
  return { el, model, end, ended: () => ended };
}

function placed(glue: { render(place: { model: FakeModel; el: HTMLElement }): () => void }, model: FakeModel) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  return { el, end: glue.render({ model, el }) };
}

test("traits are shown at once and when they change, by whichever name, until the end", () => {
  const model = new FakeModel({ a: 1, b: 2 });
  const seen: unknown[] = [];
  const { end, ended } = opened(({ follow, get }) => follow({ "a b": () => seen.push([get("a"), get("b")]) }), model);
  model.set("b", 3);
  model.set("a", 4);
  expect(seen).toEqual([[1, 2], [1, 3], [4, 3]]);
  end();
  expect(ended()).toBe(1);
  expect(model.listeners).toBe(0);
});

test("the shared selection is shown at once too: a page that was reloaded stands where it stood", () => {
  const seen: unknown[] = [];
  const { model } = opened(({ onSelect, select }) => {
    onSelect(({ layer }) => seen.push(layer));
    select({ head: 1 });
  });
  expect(seen).toEqual([3, 3]);
  expect(model.state.selection).toMatchObject({ layer: 3, head: 1, named: ["head"] }); // the layer may be old news
  expect(model.isSaved).toBe(true);
});

test("a choice stands until Python has heard of it, whatever older news come in between", () => {
  const seen: unknown[] = [];
  let choose: Opened["select"] = () => undefined;
  const { model } = opened(({ onSelect, select }) => {
    onSelect(({ layer, head }) => seen.push([layer, head]));
    choose = select;
  });
  const serial = () => (model.state.selection as { serial: string }).serial;
  choose({ layer: 5 });
  const first = serial();
  choose({ head: 2 });
  const second = serial();
  model.set("selection", { layer: 5, head: null, heard: first }); // its answer to the first choice
  expect(seen.at(-1)).toEqual([5, 2]);
  choose({ token: 6 });
  expect(model.state.selection).toMatchObject({ layer: 5, head: 2, token: 6 });
  expect((model.state.selection as { named: string[] }).named).toEqual(expect.arrayContaining(["head", "token"]));
  model.set("selection", { layer: 5, head: 2, token: null, heard: second });
  expect(seen.at(-1)).toEqual([5, 2]);
  choose({ step: 1 });
  model.set("selection", { layer: 5, head: 2, token: 6, step: 1, heard: serial() });
  model.set("selection", { layer: 0, head: 1, heard: serial() }); // chosen in Python since
  expect(seen.at(-1)).toEqual([0, 1]);
});

test("what a view expects and does not get is said to be the kernel's silence, until it speaks", async () => {
  let put: Opened["put"] = () => undefined;
  const { el, model } = opened((given) => {
    given.expects(() => true);
    given.follow({ news: () => undefined });
    put = given.put;
  });
  await vi.advanceTimersByTimeAsync(14_000);
  expect(el.querySelector("[role=alert]")).toBeNull();
  await vi.advanceTimersByTimeAsync(16_000);
  expect(el.querySelector("[role=alert]")?.textContent).toContain("The kernel does not answer");
  expect(el.textContent).toContain("what it told");
  await vi.advanceTimersByTimeAsync(600_000);
  expect(model.sent.length).toBeLessThan(60); // it goes on asking, now and then
  put("news", 0); // what the view itself changes is no word of the kernel
  expect(el.querySelector("[role=alert]")).not.toBeNull();
  model.set("news", 1);
  expect(el.querySelector("[role=alert]")).toBeNull();
});

test("a kernel that answers, if only with a refusal, is there; one that is asked nothing is left alone", async () => {
  const alive = opened(({ expects }) => expects(() => true), new FakeModel({}, () => new Error("answers no 'alive'")));
  await vi.advanceTimersByTimeAsync(60_000);
  expect(alive.model.sent.map(({ name }) => name)).toContain("alive");
  expect(alive.el.querySelector("[role=alert]")).toBeNull();
  const quiet = opened(() => undefined, new FakeModel({}));
  await vi.advanceTimersByTimeAsync(600_000);
  expect(quiet.model.sent).toEqual([]);
});

test("a question to a kernel that is dead is refused, and the silence noticed", async () => {
  const model = new FakeModel({}, () => {
    throw new Error("Kernel is dead");
  });
  let refused: unknown;
  const { el } = opened(({ ask }) => void ask("about").catch((error: unknown) => (refused = error)), model);
  await settle();
  expect(String(refused)).toContain("Kernel is dead");
  model.tell("comm_live_update"); // as JupyterLab tells that the connection is gone
  await settle();
  expect(el.querySelector("[role=alert]")?.textContent).toContain("The kernel does not answer");
});

test("nothing is asked or said after the end", async () => {
  const { el, model, end } = opened(({ expects }) => expects(() => true));
  end();
  await vi.advanceTimersByTimeAsync(600_000);
  expect(model.sent).toEqual([]);
  expect(el.querySelector("[role=alert]")).toBeNull();
});

// A page that is reloaded while its kernel lives -----------------------------------------------------

test("a tree opens at the module that was selected", async () => {
  const path = treeSample.paths[treeSample.paths.length - 1] as string;
  const about = { class: "torch.nn.Linear", extra: "", parameters: {}, devices: [], source: "", paused: "" };
  const model = new FakeModel({ title: "Net", nodes: sent, marks: {}, selected: path }, (name) => (name === "about" ? about : null));
  const { el } = placed(tree, model);
  await settle();
  expect(el.querySelector('[role=treeitem][aria-selected="true"] code')?.textContent).toBe(path.split(".").pop());
  expect(el.querySelector(".about")?.textContent).toContain("torch.nn.Linear");
});

test("a tree whose kernel does not know it any more says why", async () => {
  const model = new FakeModel({ title: "Net", nodes: sent, marks: {}, selected: "0" }, () => new Error("the model of this tree is gone."));
  const { el } = placed(tree, model);
  await settle();
  expect(el.querySelector(".about [role=alert]")?.textContent).toBe("the model of this tree is gone.");
});

test("a browser opens at the operation that was selected, inside the one it is in", async () => {
  const inner = { ...sourceSample.listing, path: "inner", lines: [[1, "return softmax(x)", ["softmax_0"]]] };
  const outer = sourceSample.listing.lines.flatMap(([, , names]) => names as string[])[0] as string;
  const model = new FakeModel({ title: sourceSample.title, listing: sourceSample.listing, selected: `${outer}.source.softmax_0` }, () => inner);
  const { el } = placed(source, model);
  await settle();
  expect(el.querySelector('.names [aria-pressed="true"]')?.textContent).toBe("softmax_0");
  expect(model.sent[0]?.given).toEqual({ trail: [outer] });
  expect(model.state.selected).toBe(`${outer}.source.softmax_0`);
});

test("a ledger opens with what was compared", async () => {
  const model = new FakeModel({ rows: ledgerSample.rows, chosen: [], shown: [1, 2], busy: 0, trouble: {} }, (name) => (name === "compare" ? ledgerSample.compared : ledgerSample.about));
  const { el } = placed(ledger, model);
  await settle();
  expect(el.querySelector("b.one")?.textContent).toBe("Run 1");
  expect(model.sent.map(({ name }) => name)).toEqual(["compare"]);
});

test("a generation opens with all its steps, at the one that was selected", async () => {
  const steps = ["a", "b", "c"].map((token) => ({ token, id: null, chance: 0.5, entropy: 1, top: [], texts: [], values: [], forced: false }));
  const lanes = [{ number: 0, parent: null, start: 0, why: "main", state: "done", trouble: null }];
  const model = new FakeModel({ title: "x", prompt: [], layers: [], measures: [], forks: false, lanes, focus: 0, latest: {}, measure: 0, draft: {}, selection: { step: 1 } }, () => ({ steps, more: false }));
  const { el } = placed(generation, model);
  await settle();
  expect(el.querySelector('td[aria-selected="true"]')?.textContent).toBe("b");
});
