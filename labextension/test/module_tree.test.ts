import { expect, test } from "vitest";
import sample from "../samples/module_tree.json";
import { moduleTree, type Nodes } from "../src/views/module_tree";
import { nodes as sampled } from "./nodes";

const about = { class: "torch.nn.Linear", extra: "in_features=2", parameters: { weight: [2, 2] }, devices: ["cpu"], source: "", paused: "" };

function shown(nodes: Nodes = sampled) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const chosen: string[] = [];
  const laid: boolean[] = [];
  const view = moduleTree(el, { select: (path) => chosen.push(path), about: () => Promise.resolve(about), overlay: (isOn) => laid.push(isOn) });
  view.setNodes(sample.title, nodes);
  const rows = () => [...el.querySelectorAll('[role="treeitem"]')] as HTMLElement[];
  const press = (key: string) => el.querySelector('[role="tree"]')?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  return { el, view, chosen, laid, rows, press };
}

test("the tree opens down to what its first block holds", () => {
  const { rows } = shown();
  expect(rows().length).toBeGreaterThan(2);
  expect(rows()[0]?.getAttribute("aria-expanded")).toBe("true");
});

test("arrows walk the tree, and what they reach is selected in Python", () => {
  const { press, chosen } = shown();
  for (const key of ["Home", "ArrowDown"]) press(key);
  expect(chosen).toEqual(["", sample.paths[1]]);
});

test("a search keeps what it finds, with the way there", () => {
  const { el, rows } = shown();
  const search = el.querySelector("input") as HTMLInputElement;
  search.value = sample.paths[sample.paths.length - 1] as string;
  search.dispatchEvent(new Event("input"));
  const names = rows().map((row) => row.querySelector("code")?.textContent);
  expect(names[names.length - 1]).toBe(sampled.name[sampled.name.length - 1]);
  expect(names.length).toBeLessThan(sampled.name.length);
});

test("a name is text, whatever it holds", () => {
  const nodes = { ...sampled, kinds: sampled.kinds.map(() => "<img src=x onerror=alert(1)>") };
  expect(shown(nodes).el.querySelector("img")).toBeNull();
});

test("ten thousand modules are drawn a screen at a time", () => {
  const count = 10_000;
  const flat: Nodes = {
    name: Array.from({ length: count }, (_, i) => (i ? `m${i}` : "")), parent: Array.from({ length: count }, (_, i) => (i ? 0 : -1)),
    kind: Array(count).fill(0), size: Array(count).fill(1), output: Array(count).fill(0), kinds: ["Linear"], outputs: [""],
  };
  expect(shown(flat).rows().length).toBeLessThan(60);
});

test("a mark says what a run did, the strongest by its sign and all of it in words", () => {
  const { el, view } = shown();
  view.setMarks({ ran: [0, 1], read: [0, 0], written: [0, 0] });
  const marks = [...el.querySelectorAll('[role="treeitem"] .mark')];
  expect(marks.slice(0, 2).map((mark) => mark.getAttribute("aria-label"))).toEqual(["ran, read, written", "ran"]);
  expect(marks[0]?.textContent).toBe("●");
});

test("a folded row hints at what is marked inside, and the next run clears it", () => {
  const { el, view, press } = shown();
  view.setMarks({ ran: [0, 5], paused: [4, 4] });
  for (const key of ["Home", "ArrowDown", "ArrowDown", "ArrowLeft"]) press(key); // folds row 2
  const folded = el.querySelectorAll('[role="treeitem"]')[2]?.querySelector(".mark");
  expect(folded?.getAttribute("aria-label")).toBe("inside: ran, the pass stands here");
  const place = [...el.querySelectorAll("button")].find((button) => button.textContent?.startsWith("▶"));
  expect(place?.textContent).toBe(`▶ ${sample.paths[4]}`);
  place?.click(); // unfolds the way there
  expect(el.querySelector('[aria-selected="true"] .mark')?.textContent).toBe("▶");
  view.setMarks({});
  expect(place?.classList.contains("hidden")).toBe(true);
  expect(el.querySelectorAll('[role="treeitem"] .mark')).toHaveLength(0);
});

test("shapes that are learned later leave the tree as it was opened", () => {
  const { view, rows, press } = shown();
  for (const key of ["Home", "ArrowLeft"]) press(key);
  const before = rows().length;
  view.setNodes(sample.title, { ...sampled, output: sampled.name.map(() => 1), outputs: ["", "float32[2, 2]"] });
  expect(rows()).toHaveLength(before);
  expect(rows()[0]?.textContent).toContain("float32[2, 2]");
});

const button = (el: HTMLElement, text: string) => [...el.querySelectorAll("button")].find((one) => one.textContent === text) as HTMLButtonElement;

test("what can be reached is asked for by its button, and said by words at each row and above", () => {
  const { el, view, laid, press } = shown();
  const lay = button(el, "Reach");
  lay.click();
  expect(laid).toEqual([true]);
  expect(el.querySelector(".reach")?.classList.contains("hidden")).toBe(true); // Python has not told it yet
  view.setReach(sample.reach);
  expect(lay.getAttribute("aria-pressed")).toBe("true");
  expect(el.querySelector(".spoken")?.textContent).toBe("what can be reached is shown");
  const panel = el.querySelector(".reach") as HTMLElement;
  expect(panel.textContent).toContain(sample.reach.backend);
  for (const { label, words } of sample.reach.kinds) expect(panel.textContent).toContain(`${label}1${words}`);
  expect(panel.textContent).toContain("The other 5 modules");
  const row = [...el.querySelectorAll('[role="treeitem"]')].find((it) => it.querySelector(".kind"));
  expect(row?.querySelector("code")?.textContent).toBe("1");
  expect(row?.querySelector(".kind")?.textContent).toBe("compiled");
  press("Home");
  lay.click();
  expect(laid).toEqual([true, false]);
  view.setReach({});
  expect(el.querySelectorAll(".kind")).toHaveLength(0);
  expect(panel.classList.contains("hidden")).toBe(true);
});

test("a kind's button shows its modules, and again all of them", () => {
  const { el, view, rows } = shown();
  view.setReach({ backend: "<b>", kinds: [{ label: "never called", words: "<i>", rows: [4, 5] }, { label: "compiled", words: "w", rows: [4, 4] }] });
  expect(el.querySelector(".reach p b + *, .reach i")).toBeNull(); // what Python tells is text
  const before = rows().length;
  button(el, "never called").click();
  expect(rows().map((row) => [...row.querySelectorAll(".kind")].map((it) => it.textContent))).toEqual([[], [], ["never called", "compiled"], ["never called"]]);
  expect(rows()[2]?.querySelector(".kind")?.className).toBe("kind less");
  button(el, "never called").click();
  expect(rows()).toHaveLength(before);
});

test("rows that are no more leave the list of kinds as it can be", () => {
  const { el, view } = shown();
  view.setReach({ backend: "", kinds: [{ label: "compiled", words: "", rows: [3, 99] }] });
  expect(el.querySelector(".reach .number")?.textContent).toBe("3");
  view.setReach({ backend: "", kinds: [] });
  expect(el.querySelector(".reach")?.textContent).toContain("6 modules: input");
});
