/** What a click selects is what a cell is labelled with, not the row and column it stands in. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import attentionSample from "../samples/attention_view.json";
import cacheSample from "../samples/cache_inspector.json";
import generationSample from "../samples/generation_view.json";
import lensSample from "../samples/lens_grid.json";
import patchSample from "../samples/patch_map.json";
import stepperSample from "../samples/stepper.json";
import treeSample from "../samples/module_tree.json";
import { byLabels, type Chooses, placesOf, selected } from "../src/kit/places";
import attention from "../src/widgets/attention_view";
import cache from "../src/widgets/cache_inspector";
import generation from "../src/widgets/generation_view";
import lens from "../src/widgets/lens_grid";
import patches from "../src/widgets/patch_map";
import stepper from "../src/widgets/stepper";
import tree from "../src/widgets/module_tree";
import { FakeModel } from "./fake_model";
import { bytes, numbers } from "./numbers";
import { sent } from "./nodes";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

type Glue = { render(place: { model: FakeModel; el: HTMLElement }): () => void };

async function placed(glue: Glue, state: Record<string, unknown>, answer: (name: string, given: Record<string, unknown>) => unknown = () => undefined) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const model = new FakeModel({ selection: {}, ...state }, answer);
  glue.render({ model, el });
  await settle();
  const press = (key: string, where = "canvas") => el.querySelector(where)?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const select = async (selection: Record<string, unknown>) => (model.set("selection", { token: null, layer: null, head: null, step: null, ...selection, ...heard(model) }), await settle());
  const line = () => [...el.querySelectorAll("[aria-live]:not(.spoken)")].map((it) => it.textContent).find(Boolean) ?? "";
  return { el, model, press, select, line };
}
/** Python has heard of the last choice: what it tells then is news. */
const heard = (model: FakeModel) => ({ heard: (model.state.selection as { serial?: string }).serial });
const settle = () => vi.advanceTimersByTimeAsync(300);
const named = (model: FakeModel) => {
  const { layer, head, token, step } = model.state.selection as Record<string, number | null>;
  return { layer, head, token, step };
};

test("places and numbers are told apart", () => {
  const axes: Chooses[] = [["layer", [2, 5]], ["token", 7], ["", 0]];
  expect(selected(axes, [1, 0, 4])).toEqual({ layer: 5, token: 7 });
  expect(selected(axes, [0, null])).toEqual({ layer: 2, token: null });
  expect(placesOf(axes, { layer: 5, token: 9, head: 1 })).toEqual([1, 2, null]);
  expect(placesOf(axes, { layer: 3, token: 6 })).toEqual([Number.NaN, Number.NaN, null]);
  expect(placesOf(axes, { layer: null })).toEqual([null, null, null]);
  expect(byLabels("layer", ["3", "4"])).toEqual(["layer", [3, 4]]);
  expect(byLabels("layer", ["embed", "4"])).toEqual(["layer", 0]);
});

const grid = (further: Record<string, unknown>) => ({ ...lensSample, note: "", first: [0, 0], measure: 0, values: lensSample.values.map(bytes), ...further });

test("a grid of layers 2 to 4 selects layer 4 at its top, and follows to it", async () => {
  const { model, press, select, line } = await placed(lens, grid({ rows: ["2", "3", "4"], chooses: [["layer", 2], ["token", 5]] }));
  for (const key of ["ArrowDown", "ArrowRight", "Enter"]) press(key);
  expect(named(model)).toEqual({ layer: 4, head: undefined, token: 6, step: undefined });
  await select({ layer: 2, token: 7 });
  expect(line()).toMatch(/^layer 2 · pos ⏎/);
  await select({ layer: 7, token: 7 });
  expect(line()).toBe("");
});

test("a grid of layers by heads selects heads, and says so wherever it names them", async () => {
  const { el, model, press, line } = await placed(lens, grid({ names: ["layer", "head"], columns: ["0", "1", "2"], texts: [], chooses: [["layer", 0], ["head", 0]] }));
  for (const key of ["ArrowDown", "ArrowRight", "Enter"]) press(key);
  expect(named(model)).toEqual({ layer: 2, head: 1, token: undefined, step: undefined });
  expect(line()).toContain("layer 2 · head 1");
  expect(el.querySelector("canvas")?.getAttribute("aria-label")).toBe("layer by head");
  const fold = el.querySelector("details.behind") as HTMLDetailsElement;
  fold.open = true;
  fold.dispatchEvent(new Event("toggle"));
  expect([...fold.querySelectorAll("thead th")].map((it) => it.textContent).slice(0, 2)).toEqual(["layer", "head"]);
});

test("a grid whose rows are no layers stands with its first row above, and selects what it knows of", async () => {
  const { model, press, select, line } = await placed(lens, grid({ names: ["component", "pos"], rows: ["embed", "mlp 0", "mlp 1"], chooses: [["", 0], ["token", 0]] }));
  for (const key of ["ArrowDown", "ArrowRight", "Enter"]) press(key);
  expect(named(model)).toEqual({ layer: undefined, head: undefined, token: 1, step: undefined });
  expect(line()).toContain("component embed");
  await select({ layer: 2, token: 2 });
  expect(line()).toContain("component embed · pos ⏎"); // its row stays
});

const heads = (further: Record<string, unknown> = {}) => ({ ...attentionSample.traits, ...further });
const weights = (name: string): unknown => ({ ...(attentionSample as unknown as Record<string, object>)[name] });

test("attention of layers 1 and 2 selects those, and follows to them", async () => {
  const { el, model, select } = await placed(attention, heads({ chooses: [["layer", 4], ["head", [3, 0]], ["token", 0]] }), weights);
  (el.querySelectorAll(".heads button")[1] as HTMLElement | undefined)?.click();
  expect(named(model)).toMatchObject({ layer: 5, head: 0, token: 2 });
  await select({ layer: 4, head: 3, token: 0 });
  expect((el.querySelector("select") as HTMLSelectElement).selectedIndex).toBe(0);
  expect(el.querySelector(".heads [aria-pressed=true]")?.getAttribute("aria-label")).toBe("head 0");
  await select({ layer: 1, head: 3, token: 0 }); // which is not here
  expect((el.querySelector("select") as HTMLSelectElement).selectedIndex).toBe(0);
});

test("attention over heads selects layers and no head", async () => {
  const { el, model } = await placed(attention, heads({ names: ["layer", ""], heads: [""], chooses: [["layer", 0], ["", 0], ["token", 0]] }), weights);
  const choice = el.querySelector("select") as HTMLSelectElement;
  choice.selectedIndex = 0;
  choice.dispatchEvent(new Event("change"));
  expect(named(model)).toEqual({ layer: 0, head: undefined, token: 2, step: undefined });
  expect(el.querySelector(".heads")?.classList.contains("hidden")).toBe(true);
});

test("a map of patches of layers 2 and 3 selects those, and follows to them", async () => {
  const { traits, ran, state } = patchSample;
  const { model, press, select, line } = await placed(patches, { ...traits, estimated: bytes(numbers(traits.estimated)), ran: bytes(numbers(ran)), state, code: "" });
  for (const key of ["ArrowDown", "Enter"]) press(key);
  expect(named(model)).toMatchObject({ layer: 3, token: 0 });
  await select({ layer: 2, token: 1 });
  expect(line()).toContain("layer 2 · pos ·<b>");
});

test("a generation follows to a layer and a step, and selects both", async () => {
  const { lanes, steps, ...about } = generationSample;
  const { el, model, select } = await placed(generation, { ...about, lanes, latest: {}, focus: 0, measure: 0, draft: {} }, (name, { branch, first }) => (name === "steps" ? { steps: (steps[branch as number] ?? []).slice(first as number), more: false } : undefined));
  await select({ step: 1, layer: 1 });
  const line = () => el.querySelector(".maps [aria-live]")?.textContent ?? "";
  expect(line()).toContain(`layer ${about.layers[1]} · step`);
  await select({ step: 1, layer: 0 });
  expect(line()).toContain(`layer ${about.layers[0]} · step`);
  el.querySelector(".maps canvas")?.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  expect(named(model)).toMatchObject({ layer: Number(about.layers[0]), step: 1 });
});

const modules = () => placed(tree, { ...treeSample, nodes: sent, marks: {}, selected: "" }, () => ({ class: "", extra: "", parameters: {}, devices: [], source: "", paused: "" }));

test("a tree marks the module of the layer that is selected, and leaves what is chosen in it", async () => {
  const { el, model, select, press } = await modules();
  press("Home", "[role=tree]");
  await select({ layer: 1 });
  const marked = () => [...el.querySelectorAll(".row.layer")].map((row) => row.querySelector("code")?.textContent);
  expect(marked()).toEqual(["1"]);
  expect(el.querySelector(".row.layer")?.textContent).toContain("selected layer");
  expect(model.state.selected).toBe("");
  await select({});
  expect(marked()).toEqual([]);
});

test("a module that is chosen in a tree selects its layer, and one outside of them none", async () => {
  const { el, model } = await modules();
  const row = (name: string) => [...el.querySelectorAll<HTMLElement>(".row")].find((it) => it.querySelector("code")?.textContent === name);
  row("1")?.click();
  expect(named(model)).toMatchObject({ layer: 1 });
  model.set("selection", heard(model));
  row("model")?.click();
  expect(named(model).layer).toBeUndefined();
});

const inspector = (asked: unknown[][] = [], place: number | null = 1, step: number | null = null) =>
  placed(cache, { ...cacheSample.traits, first: { ...cacheSample.traits.first, rows: cacheSample.traits.first.rows.map((row) => row.map((it, at) => (at === 2 ? step : it))) }, chosen: null }, (name, given) => {
    asked.push([name, given]);
    if (name === "numbers") return cacheSample.numbers;
    if (name === "picture") return { ...cacheSample.picture };
    return name === "place" ? place : undefined;
  });

test("a tensor that is chosen selects its layer, and its step where there are several", async () => {
  const { el: other, model: of } = await inspector();
  (other.querySelectorAll("[role=option]")[1] as HTMLElement).click();
  expect(named(of)).toEqual({ layer: 1, head: undefined, token: undefined, step: undefined });
  const { el, model } = await inspector([], 1, 0);
  (el.querySelectorAll("[role=option]")[1] as HTMLElement).click();
  expect(named(model)).toMatchObject({ layer: 1, step: 0 });
  model.set("selection", heard(model));
  (el.querySelectorAll("[role=option]")[2] as HTMLElement).click();
  expect(named(model)).toMatchObject({ layer: undefined, step: 0 });
});

test("a cache goes to the tensor of the layer that is selected, and does not tell it again", async () => {
  const asked: unknown[][] = [];
  const { el, model, select } = await inspector(asked);
  (el.querySelectorAll("[role=option]")[0] as HTMLElement).click();
  await settle();
  const before = JSON.stringify(model.state.selection);
  await select({ layer: 1 });
  expect(asked.filter(([name]) => name === "place").at(-1)).toEqual(["place", { layer: 1, step: null, chosen: 0 }]);
  expect(el.querySelector("[aria-selected=true] code")?.textContent).toBe("model.h.1.mlp.output");
  expect(model.state.chosen).toBe(1);
  expect(before).not.toBe(JSON.stringify(model.state.selection));
  expect(named(model)).toEqual({ layer: 1, head: null, token: null, step: null });
});

test("a stepper points at the layer and the token that are selected elsewhere, and tells its own", async () => {
  const value = { ...stepperSample.value, tokens: ["The", " <b>"], part: [2, 2], picture: [2, 2] };
  const { el, model, select } = await placed(stepper, { ...stepperSample, value, code: [], busy: "", trouble: {}, picture: bytes([1, 2, 3, 4]), source: {} });
  const chosen = () => el.querySelector("[role=treeitem][aria-selected=true] code")?.textContent;
  await select({ layer: 2, token: 1 });
  expect(chosen()).toBe("2");
  expect(el.querySelector(".sides")?.textContent).toContain("row 1 ·<b>");
  await select({ layer: stepperSample.place.layer });
  expect(chosen()).toBeUndefined(); // the pass stands there
  [...el.querySelectorAll<HTMLElement>("[role=treeitem]")].find((row) => row.textContent?.includes("ReLU"))?.click();
  expect(named(model)).toMatchObject({ layer: 1 });
});
