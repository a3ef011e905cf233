import { expect, test } from "vitest";
import sample from "../samples/denoising_view.json";
import { denoisingView, type State, type Step } from "../src/views/denoising_view";
import { saved } from "./saved";

const soon = () => new Promise((done) => setTimeout(done, 40));
const step = (number: number): Step => ({ number, timestep: 900 - number, change: number ? 0.5 : null, picture: new DataView(new ArrayBuffer(4)), shape: [2, 1, 2], maps: new Float32Array([0, 1, 0.5, 0.25]) });

async function shown(had: number, asks = {}) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const did: unknown[] = [];
  const view = denoisingView(el, {
    select: (number) => did.push(number),
    stop: () => (did.push("stop"), Promise.resolve()),
    steps: (first) => Promise.resolve({ steps: Array.from({ length: Math.min(2, had - first) }, (_, i) => step(first + i)), more: first + 2 < had }),
    ...asks,
  });
  view.state({ name: "running", of: 5 });
  view.about({ title: "Denoising", prompt: "<b>", tokens: [" a", "\n"] });
  await soon();
  return { el, view, did };
}

test("steps from before are had in parts, later ones come, and the newest is looked at", async () => {
  const { el, view } = await shown(3);
  expect(el.querySelectorAll("[role=option]").length).toBe(3);
  view.step(step(3));
  await soon();
  expect(el.querySelector("[aria-selected=true]")?.textContent).toBe("3");
  expect(el.textContent).toContain("drawing, 5 steps");
  expect(el.querySelector(".mono b")).toBeNull();
});

/** The view of the sample: what Python answers, and its maps. */
async function sampled() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const { steps, more } = sample.steps;
  const view = denoisingView(el, {
    select: () => undefined, stop: () => Promise.resolve(),
    steps: () => Promise.resolve({ steps: steps.map((step, index) => ({ ...step, picture: new DataView(new ArrayBuffer(4)), maps: new Float32Array(sample.maps[index] ?? []) })) as unknown as Step[], more }),
  });
  view.state(sample.traits.state as State);
  view.about(sample.traits);
  await soon();
  return el;
}

test("what Python sends is shown: each step, each word's map, names as text", async () => {
  expect(sample.pictures).toEqual(["PNG", "PNG"]);
  const el = await sampled();
  expect(el.querySelectorAll("[role=option]").length).toBe(2);
  expect([...el.querySelectorAll(".maps code")].map((it) => it.textContent)).toEqual(["·<b>", "⏎"]);
});

test("a table tells where each word is looked at, and a file has every weight of every step", async () => {
  const el = await sampled();
  const fold = [...el.querySelectorAll<HTMLDetailsElement>("details.behind")].find((it) => it.textContent?.includes("Attention")) as HTMLDetailsElement;
  fold.open = true;
  fold.dispatchEvent(new Event("toggle"));
  const cells = [...fold.querySelectorAll("tbody tr")].map((row) => [...row.children].map((it) => it.textContent));
  expect(cells).toEqual([["·<b>", "0", "0.375", "0.1875", "1, 1"], ["⏎", "0.5", "0.875", "0.6875", "1, 1"]]);
  const group = el.querySelector('[aria-label="Export attention"]')?.parentElement as HTMLElement;
  const rows = (await saved(group, "CSV")).text.split("\r\n");
  expect(rows.slice(0, 3)).toEqual(["step,token,row,column,weight", "0, <b>,0,0,0", "0, <b>,0,1,0.125"]);
  expect(rows.length).toBe(1 + 2 * 2 * 4);
});

test("the arrow keys scrub, and each token has its map", async () => {
  const { el, did } = await shown(3);
  const strip = el.querySelector(".strip") as HTMLElement;
  for (const key of ["Home", "ArrowRight"]) strip.dispatchEvent(new KeyboardEvent("keydown", { key }));
  expect(did).toEqual([0, 1]);
  expect([...el.querySelectorAll(".maps code")].map((code) => code.textContent)).toEqual(["·a", "⏎"]);
  expect(el.querySelector(".maps canvas")?.getAttribute("aria-label")).toBe("Attention to ·a: from 0 to 1");
});

test("a stop is asked for, a failure and a kernel that is gone are told", async () => {
  const { el, view, did } = await shown(1);
  [...el.querySelectorAll("button")].find((button) => button.textContent === "Stop")?.click();
  expect(did).toEqual(["stop"]);
  view.state({ name: "failed", trouble: { what: "it broke", why: "", next: "" } });
  expect(el.querySelector(".trouble")?.textContent).toBe("it broke");
  const { el: gone } = await shown(0, { steps: () => Promise.reject(new Error("gone")) });
  expect(gone.querySelector(".trouble")?.textContent).toContain("could not be had");
  const { el: empty } = await shown(0);
  expect(empty.textContent).toContain("No picture yet");
});

test("what has no map, and why, is told below the pictures", async () => {
  const { el, view } = await shown(1);
  const line = () => el.querySelector("p.soft") as HTMLElement;
  expect(line().classList.contains("hidden")).toBe(true);
  view.about({ title: "Denoising", prompt: "", tokens: [], note: "Attention maps of the first 24 of <b>30 tokens." });
  await soon();
  expect([line().textContent, line().classList.contains("hidden")]).toEqual(["Attention maps of the first 24 of <b>30 tokens.", false]);
});
