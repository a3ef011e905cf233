import { expect, test } from "vitest";
import { patchMap } from "../src/views/patch_map";

function shown() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const asked: number[][][] = [];
  const view = patchMap(el, { run: (layers, places) => (asked.push([layers, places]), Promise.resolve()), select: () => undefined });
  view.show({ title: "Patches", names: ["layer", "head"], rows: ["0", "1"], columns: ["0", "1", "2"], quantity: "share", estimated: new Float32Array([0, 0.1, 0.2, 0.3, 0.4, 0.5]) });
  view.setExact(new Float32Array(6).fill(Number.NaN));
  const canvas = el.querySelector("canvas") as HTMLCanvasElement;
  const press = (key: string, shiftKey = false) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }));
  const run = el.querySelector("button") as HTMLButtonElement;
  return { el, view, asked, press, run };
}

test("brushed cells are run, exactly those; the last layer stands at the top", () => {
  const { press, run, asked } = shown();
  expect(run.disabled).toBe(true);
  press("ArrowDown");
  press("ArrowRight", true);
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

test("estimates are set against exact numbers, one point a patch", () => {
  const { view, el } = shown();
  view.setExact(new Float32Array([0, Number.NaN, 0.3, Number.NaN, Number.NaN, 1]));
  expect(el.querySelectorAll("circle").length).toBe(3);
});
