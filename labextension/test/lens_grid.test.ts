import { expect, test } from "vitest";
import sample from "../samples/lens_grid.json";
import { lensGrid, type Measure } from "../src/views/lens_grid";
import lens from "../src/widgets/lens_grid";
import { FakeModel } from "./fake_model";
import { saved } from "./saved";

function shown() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const chosen: number[][] = [];
  const measured: number[] = [];
  const view = lensGrid(el, { select: (row, column) => chosen.push([row, column]), top: () => Promise.resolve([[" Paris", 0.9]]), measure: (number) => measured.push(number) });
  view.show({ ...sample, note: "", measures: sample.measures as Measure[], values: sample.values.map((all) => new Float32Array(all)) });
  return { el, view, chosen, measured, canvas: el.querySelector("canvas") as HTMLCanvasElement };
}

const press = (canvas: HTMLElement, key: string) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));

test("the last layer stands at the top, and Enter selects its first cell", async () => {
  const { canvas, chosen, el } = shown();
  press(canvas, "ArrowDown");
  press(canvas, "Enter");
  expect(chosen).toEqual([[sample.rows.length - 1, 0]]);
  await Promise.resolve();
  await Promise.resolve();
  expect(el.querySelector(".top code")?.textContent).toBe("·Paris");
});

test("every measure can be chosen", () => {
  const { el, view, measured } = shown();
  expect([...el.querySelectorAll("option")].map((option) => option.textContent)).toEqual(sample.measures.map((measure) => measure.quantity));
  const choice = el.querySelector("select") as HTMLSelectElement;
  choice.selectedIndex = 1;
  choice.dispatchEvent(new Event("change"));
  expect(measured).toEqual([1]);
  view.setMeasure(0); // as Python, or a page that was reloaded, says
  expect(choice.selectedIndex).toBe(0);
});

test("its CSV has a row a cell: where it is, every measure, and its word", async () => {
  const { el } = shown();
  const { name, text } = await saved(el, "CSV");
  expect(name).toBe("lens.csv");
  const rows = text.replace('"\n"', "⏎").split("\r\n");
  expect(rows[0]).toBe("layer,pos,token,probability,KL from the final prediction,text");
  expect(rows.length).toBe(1 + 9);
  expect(rows[5]?.split(",")).toEqual(["1", "1", " city", String(sample.values[0]?.[4]), String(sample.values[1]?.[4]), "e"]);
  const picture = (await saved(el, "SVG")).text;
  expect(picture.match(/class="cell"/g)?.length).toBe(9);
  expect(picture).toContain("layer 2 · pos The");
});

test("the table behind has all numbers", () => {
  const { el } = shown();
  const fold = el.querySelector("details.behind") as HTMLDetailsElement;
  fold.open = true;
  fold.dispatchEvent(new Event("toggle"));
  expect(fold.querySelectorAll("tbody tr").length).toBe(sample.rows.length * sample.columns.length);
});

test("a mouse that leaves gives the cursor back to the cell that is selected", () => {
  const { view, canvas, el } = shown();
  const under = (): string => el.querySelector(".insitu-lens_grid")?.textContent ?? "";
  view.mark(0, 0);
  const selected = `layer ${sample.rows[0]} · pos ${sample.columns[0]}`;
  expect(under()).toContain(selected);
  press(canvas, "ArrowRight");
  expect(under()).not.toContain(selected);
  canvas.dispatchEvent(new PointerEvent("pointerleave"));
  expect(under()).toContain(selected);
});

test("a cell that is selected elsewhere tells what else was likely in it, once", async () => {
  const { view, el, canvas } = shown();
  expect(el.querySelector(".top code")).toBeNull();
  view.mark(1, 0);
  await Promise.resolve();
  await Promise.resolve();
  expect(el.querySelector(".top code")?.textContent).toBe("·Paris");
  expect(canvas.style.outlineOffset).toBe("-2px"); // its place cuts off what stands out
});

test("another result of the same size takes its place: the measure and the cell stay", async () => {
  const asked: number[][] = [];
  const el = document.createElement("div");
  const view = lensGrid(el, { select: () => undefined, top: (...at) => (asked.push(at), Promise.resolve([])), measure: () => undefined });
  const lens = { ...sample, note: "", measures: sample.measures as Measure[], values: sample.values.map((all) => new Float32Array(all)) };
  view.show(lens);
  view.setMeasure(1);
  view.mark(0, 1);
  view.show({ ...lens, title: "After", values: lens.values.map((all) => all.map((value) => value / 2)) });
  expect([el.querySelector("b")?.textContent, (el.querySelector("select") as HTMLSelectElement).selectedIndex]).toEqual(["After", 1]);
  expect(asked).toEqual([[0, 1], [0, 1]]); // what else is likely there now
  expect(el.textContent).toContain(`${sample.names[0]} ${sample.rows[0]}`); // the cursor stands where it was
  view.show({ ...lens, rows: lens.rows.slice(0, 1), measures: lens.measures.slice(0, 1) });
  expect(asked.length).toBe(2);
  view.setMeasure(0);
});

test("one message that changes several traits is drawn once", async () => {
  const state = { ...sample, chooses: [], note: "", first: [0, 0], measure: 0, values: sample.values.map((all) => new DataView(new Float32Array(all).buffer)) };
  const model = new FakeModel(state);
  const el = document.createElement("div");
  const end = lens.render({ model, el });
  let drawn = 0;
  const seen = new MutationObserver((changes) => (drawn += changes.some((it) => it.target.nodeName === "B") ? 1 : 0));
  seen.observe(el, { childList: true, subtree: true, characterData: true });
  Object.assign(model.state, { title: "After", values: state.values });
  for (const name of ["title", "texts", "values"]) model.tell(`change:${name}`);
  await new Promise((done) => setTimeout(done));
  expect([el.querySelector("b")?.textContent, drawn]).toEqual(["After", 1]);
  end();
});
