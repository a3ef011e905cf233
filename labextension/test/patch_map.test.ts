import { expect, test } from "vitest";
import sample from "../samples/patch_map.json";
import { insertBelow } from "../src/kit/cells";
import { patchMap } from "../src/views/patch_map";
import widget from "../src/widgets/patch_map";
import { FakeModel } from "./fake_model";
import { numbers } from "./numbers";
import { saved } from "./saved";

const nowhere = { select: () => undefined, insert: () => false, copy: () => Promise.resolve() };

function shown() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const asked: number[][][] = [];
  const view = patchMap(el, { run: (layers, places) => (asked.push([layers, places]), Promise.resolve()), ...nowhere });
  view.show({ title: "Patches", note: "", names: ["layer", "head"], rows: ["0", "1"], columns: ["0", "1", "2"], quantity: "share", estimated: new Float32Array([0, 0.1, 0.2, 0.3, 0.4, 0.5]) });
  view.setExact(new Float32Array(6).fill(Number.NaN));
  return { asked, ...parts(el), view };
}

function parts(el: HTMLElement) {
  const canvas = el.querySelector("canvas") as HTMLCanvasElement;
  const press = (key: string, shiftKey = false) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }));
  const run = el.querySelector("button") as HTMLButtonElement;
  const release = () => canvas.dispatchEvent(new KeyboardEvent("keyup", { key: "Shift", bubbles: true }));
  return { el, press, release, run };
}

/** The view of the sample: Python's estimates, and two patches that were run. */
function sampled() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const { traits, ran, state } = sample;
  const view = patchMap(el, { run: () => Promise.resolve(), ...nowhere });
  view.show({ ...traits, first: [0, 5], estimated: new Float32Array(numbers(traits.estimated)) });
  view.setExact(new Float32Array(numbers(ran)));
  view.setState(state);
  return el;
}

test("its CSV has a row a cell, and estimates apart from what was run", async () => {
  const { name, text } = await saved(sampled(), "CSV");
  expect(name).toBe("patches.csv");
  expect(text.split("\r\n").slice(0, 5)).toEqual(["layer,pos,token,estimate,exact", "2,5,The,0,", "2,6, <b>,0.25,", '2,7,"\n",0.5,', "3,5,The,0.75,0.125"]);
});

test("its SVG has a corner where a patch was run, and the chart has one of its own", async () => {
  const el = sampled();
  const { text } = await saved(el, "SVG");
  expect([text.match(/class="cell"/g)?.length, text.match(/class="corner"/g)?.length]).toEqual([6, 2]);
  expect(text).toContain("layer 3 · pos The · 0.125 · exact; the estimate was 0.75");
  const chart = el.querySelector('[aria-label="Export agreement"]')?.parentElement as HTMLElement;
  expect((await saved(chart, "SVG")).name).toBe("agreement.svg");
  expect((await saved(chart, "CSV")).text).toBe("layer,pos,token,estimate,exact\r\n3,5,The,0.75,0.125");
});

test("brushed cells are run, exactly those; the last layer stands at the top", () => {
  const { press, release, run, asked } = shown();
  expect(run.disabled).toBe(true);
  press("ArrowDown");
  press("ArrowRight", true);
  release();
  expect(run.textContent).toBe("Run these 2 patches");
  run.click();
  expect(asked).toEqual([[[1], [0, 1]]]);
});

test("a run shows how far it is, and its code", () => {
  const { view, el, run } = shown();
  view.setState({ done: 1, of: 3 });
  expect(el.querySelector("progress")?.getAttribute("value")).toBe("1");
  view.setState({});
  view.setCode("activation_patching(…)");
  expect(el.querySelector("pre")?.textContent).toBe("activation_patching(…)");
  expect(run.disabled).toBe(true);
});

test("a run that was stopped says how far it came, and one that failed says why", () => {
  const { view, el } = shown();
  view.setState({ done: 1, of: 3 });
  view.setState({ stopped: [1, 3] });
  expect(el.querySelector(".bar")?.textContent).toContain("stopped after 1 of 3 layers: what was run is kept");
  expect(el.querySelector("progress")).toBeNull();
  view.setState({ trouble: { what: "RuntimeError: no", why: "there", next: "" } });
  expect(el.querySelector("[role=alert]")?.textContent).toBe("RuntimeError: no\nthere");
  view.setState({});
  expect(el.querySelector("[role=alert]")).toBeNull();
});

test("what is no number is drawn and kept out of the chart and the scale", () => {
  const { view, el } = shown();
  view.show({ title: "Patches", note: "", names: ["layer", "head"], rows: ["0"], columns: ["0", "1", "2"], quantity: "share", estimated: new Float32Array([Number.NaN, Infinity, 0.5]) });
  view.setExact(new Float32Array([1, Infinity, 0.3]));
  expect(el.querySelectorAll("circle").length).toBe(1);
  view.show({ title: "", note: "", names: ["layer", "head"], rows: [], columns: [], quantity: "", estimated: new Float32Array() });
  view.setExact(new Float32Array());
  expect(el.textContent).toContain("nothing to show");
});

test("estimates are set against exact numbers, one point a patch", () => {
  const { view, el } = shown();
  view.setExact(new Float32Array([0, Number.NaN, 0.3, Number.NaN, Number.NaN, 1]));
  expect(el.querySelectorAll("circle").length).toBe(3);
});

// The program of a run, in a cell of its own -------------------------------------------------------

function coded(acts: Partial<typeof nowhere> = {}) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const copied: string[] = [];
  const inserted: string[] = [];
  const view = patchMap(el, {
    run: () => Promise.resolve(), ...nowhere,
    copy: (text: string) => (copied.push(text), Promise.resolve()), insert: (text: string) => (inserted.push(text), true), ...acts,
  });
  view.setCode("exact = activation_patching()");
  const press = async (name: string) => {
    [...el.querySelectorAll("button")].find((it) => it.textContent === name)?.click();
    await new Promise((done) => setTimeout(done));
    return el.querySelector("[role=status]")?.textContent;
  };
  return { el, view, copied, inserted, press };
}

test("the program of a run is put into a cell below, and the view says so", async () => {
  const { press, inserted, copied } = coded();
  expect(await press("Insert below")).toContain("in the cell below");
  expect([inserted, copied]).toEqual([["exact = activation_patching()"], []]);
});

test("where no cell can be inserted the program is copied, and the view says that", async () => {
  const { press, copied, el, view } = coded({ insert: () => false });
  expect(await press("Insert below")).toContain("was copied: paste it");
  expect(copied).toEqual(["exact = activation_patching()"]);
  view.setCode("another");
  expect(el.querySelector("pre")?.previousElementSibling?.textContent).toBe("Insert belowCopy the code");
  const none = coded({ insert: () => false, copy: () => Promise.reject(new Error("no clipboard")) });
  expect(await none.press("Insert below")).toContain("could not be copied either");
});

function inNotebook(kinds: string[], at: number) {
  const book = document.createElement("div");
  book.className = "jp-Notebook";
  const cell = document.createElement("div");
  cell.className = "jp-Cell";
  cell.dataset.windowedListIndex = String(at);
  book.append(cell);
  document.body.replaceChildren(book);
  const cells = kinds.map((cell_type) => ({ cell_type, source: "" }));
  const model = new FakeModel({});
  Object.assign(model, { widget_manager: { context: { model: { sharedModel: { cells, insertCell: (index: number, it: (typeof cells)[0]) => cells.splice(index, 0, it) } } } } });
  return { cell, cells, model };
}

test("a cell is inserted right below the one that the view stands in", () => {
  const { cell, cells, model } = inNotebook(["markdown", "code", "code"], 1);
  expect(insertBelow(cell, model, "exact")).toBe(true);
  expect(cells.map((it) => `${it.cell_type} ${it.source}`.trim())).toEqual(["markdown", "code", "code exact", "code"]);
});

test("a page without a notebook, or a view out of its cell, inserts none; a host that listens may", () => {
  const { cell, cells, model } = inNotebook(["code"], 3);
  expect(insertBelow(cell, model, "x")).toBe(false); // no such cell
  expect(insertBelow(cell, new FakeModel({}), "x")).toBe(false); // VS Code, marimo
  const alone = document.createElement("div");
  document.body.append(alone);
  expect(insertBelow(alone, model, "x")).toBe(false);
  expect(cells.length).toBe(1);
  const heard: unknown[] = [];
  const listen = (event: Event): void => (heard.push((event as CustomEvent).detail), event.preventDefault());
  document.addEventListener("insitu-insert-cell", listen);
  expect(insertBelow(alone, model, "x")).toBe(true);
  document.removeEventListener("insitu-insert-cell", listen);
  expect(heard).toEqual([{ source: "x" }]);
});

test("the widget reaches the notebook that its model's manager knows", async () => {
  const { cell, cells, model } = inNotebook(["code"], 0);
  const bytes = (all: number[]) => new DataView(new Float32Array(all).buffer);
  Object.assign(model.state, { ...sample.traits, names: ["layer", "pos"], chooses: [], first: [0, 0], rows: ["0"], columns: ["0"], estimated: bytes([1]), ran: bytes([Number.NaN]), state: {}, code: "exact" });
  const el = document.createElement("div");
  cell.append(el);
  const end = widget.render({ model, el });
  [...el.querySelectorAll("button")].find((it) => it.textContent === "Insert below")?.click();
  expect(cells.at(1)).toEqual({ cell_type: "code", source: "exact" });
  end();
});
