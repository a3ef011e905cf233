import { expect, test } from "vitest";
import { patchMap } from "../src/views/patch_map";

function shown() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const asked: number[][][] = [];
  const view = patchMap(el, { run: (layers, places) => (asked.push([layers, places]), Promise.resolve()), select: () => undefined });
  view.show({ title: "Patches", note: "", names: ["layer", "head"], rows: ["0", "1"], columns: ["0", "1", "2"], quantity: "share", estimated: new Float32Array([0, 0.1, 0.2, 0.3, 0.4, 0.5]) });
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
