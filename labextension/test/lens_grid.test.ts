import { expect, test } from "vitest";
import sample from "../samples/lens_grid.json";
import { lensGrid, type Measure } from "../src/views/lens_grid";

function shown() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const chosen: number[][] = [];
  const view = lensGrid(el, { select: (row, column) => chosen.push([row, column]), top: () => Promise.resolve([[" Paris", 0.9]]) });
  view.show({ ...sample, measures: sample.measures as Measure[], values: sample.values.map((all) => new Float32Array(all)) });
  return { el, view, chosen, canvas: el.querySelector("canvas") as HTMLCanvasElement };
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
  const { el } = shown();
  expect([...el.querySelectorAll("option")].map((option) => option.textContent)).toEqual(sample.measures.map((measure) => measure.quantity));
});

test("the table behind has all numbers", () => {
  const { el } = shown();
  const fold = el.querySelector("details.behind") as HTMLDetailsElement;
  fold.open = true;
  fold.dispatchEvent(new Event("toggle"));
  expect(fold.querySelectorAll("tbody tr").length).toBe(sample.rows.length * sample.columns.length);
});
