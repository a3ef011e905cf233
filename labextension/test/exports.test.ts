import { expect, test, vi } from "vitest";
import source from "../samples/source_browser.json";
import tree from "../samples/module_tree.json";
import { exporting } from "../src/kit/export";
import { linesPicture } from "../src/kit/lines_picture";
import { jobDock } from "../src/views/job_dock";
import { moduleTree } from "../src/views/module_tree";
import { sourceBrowser, type Listing } from "../src/views/source_browser";
import { nodes } from "./nodes";
import { saved } from "./saved";

function place(): HTMLElement {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  return el;
}

function treeShown() {
  const el = place();
  const view = moduleTree(el, { select: () => undefined, overlay: () => undefined, about: () => new Promise(() => undefined) });
  view.setNodes(tree.title, nodes);
  return { el, view };
}

function sourceShown() {
  const el = place();
  const view = sourceBrowser(el, { select: () => undefined, into: () => new Promise(() => undefined) });
  view.show(source.title, source.listing as unknown as Listing);
  return { el, view };
}

const drawn = (text: string) => [...new DOMParser().parseFromString(text, "image/svg+xml").querySelectorAll("text")].map((line) => line.textContent);

test("the tree gives all its modules as CSV, folded ones too, with their marks", async () => {
  const { el, view } = treeShown();
  view.setMarks({ ran: [0, 5], written: [4, 4] });
  el.querySelector('[role="tree"]')?.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
  el.querySelector('[role="tree"]')?.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" })); // all but the root is folded away
  const { name, text } = await saved(el, "CSV");
  expect(name).toBe("modules.csv");
  expect(text.split("\r\n")).toEqual(["path,class,parameters,output,marks", ",Sequential,18,,ran", "0,Linear,6,,ran", "1,Sequential,6,,ran", "1.0,Linear,6,,ran", "1.1,ReLU,0,,ran written", "2,Linear,6,,ran"]);
});

test("the tree's picture has the rows that are unfolded, with marks and sizes", async () => {
  const { el, view } = treeShown();
  view.setMarks({ ran: [0, 5], written: [4, 4] });
  const { name, text } = await saved(el, "SVG");
  expect(name).toBe("modules.svg");
  expect(drawn(text)).toHaveLength(el.querySelectorAll('[role="treeitem"]').length + 5); // five have parameters
  expect(text).toContain("● ");
  for (const key of ["Home", "ArrowLeft"]) el.querySelector('[role="tree"]')?.dispatchEvent(new KeyboardEvent("keydown", { key }));
  expect(drawn((await saved(el, "SVG")).text)).toEqual(["▸ ● model  Sequential", "18"]);
});

test("the source gives its lines with their operations as a picture, as text and as CSV", async () => {
  const { el } = sourceShown();
  const lines = drawn((await saved(el, "SVG")).text);
  expect(lines).toHaveLength(source.listing.lines.length);
  expect(lines[5]).toBe("module_0    253          input = module(input)");
  expect(lines[0]).toBe("            248  def forward(self, input):");
  const { name, text } = await saved(el, "TXT");
  expect(name).toBe("source.txt");
  expect(text.split("\n").slice(0, 4)).toEqual(["source", "Sequential.forward · container.py:1", "", "  248  def forward(self, input):"]);
  expect(text).toContain("  253          input = module(input)  # module_0\n");
  expect((await saved(el, "CSV")).text).toBe("path,operation,line,text\r\nsource.module_0,module_0,253,input = module(input)");
});

test("the jobs are saved beside the log of one of them", async () => {
  const el = place();
  const view = jobDock(el, { choose: () => undefined, clear: () => Promise.resolve(), lines: () => new Promise(() => undefined), all: () => new Promise(() => undefined), cancel: () => Promise.resolve() } as unknown as Parameters<typeof jobDock>[1]);
  const job = { job: "j1", title: "train, again", phases: [["queued", 1], ["running", 2]], expected: [], queue: null, progress: [["", 3, 9, "steps"]], over: false, cancel: "", now: 3 };
  view.setJobs([job] as unknown as Parameters<typeof view.setJobs>[0]);
  expect((await saved(el, "CSV")).text.split("\r\n")).toEqual(["job,title,phase,began,phase_began,done,of", 'j1,"train, again",running,1,2,3,9']);
  view.end();
});

test("every way to save is a button with a name, and says where there is nothing", async () => {
  const group = exporting({ name: "x", svg: () => null, rows: () => [] });
  document.body.replaceChildren(group);
  const buttons = [...group.querySelectorAll("button")];
  expect(buttons.map((button) => [button.textContent, button.title])).toEqual([["PNG", "Save the picture"], ["SVG", "Save the picture"], ["CSV", "Save the data"]]);
  expect(buttons.every((button) => button.tabIndex === 0)).toBe(true);
  buttons[1]?.click();
  await new Promise((done) => setTimeout(done));
  expect(group.querySelector("[role=status]")?.textContent).toBe("nothing to save");
});

test("a PNG is on the paper of its view, which is dark where its ink is light", async () => {
  const did: unknown[][] = [];
  const pen = { set fillStyle(colour: string) { did.push(["fill with", colour]); }, fillRect: (...box: number[]) => did.push(["fill", ...box]), drawImage: () => did.push(["draw"]) };
  vi.spyOn(HTMLCanvasElement.prototype, "getContext").mockReturnValue(pen as unknown as RenderingContext);
  vi.spyOn(HTMLCanvasElement.prototype, "toBlob").mockImplementation((done) => done(new Blob(["png"])));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: 30, height: 20 });
  const view = place();
  view.className = "insitu-view";
  view.style.backgroundColor = "rgb(17, 18, 19)";
  view.append(exporting({ name: "map", canvas: () => canvas }));
  expect((await saved(view, "PNG")).name).toBe("map.png");
  expect(did).toEqual([["fill with", "rgb(17, 18, 19)"], ["fill", 0, 0, 30, 20], ["draw"]]);
});

test("where there is no SVG, it says why", async () => {
  const group = exporting({ name: "x", svg: () => "40,000 cells are too many for SVG: save PNG or CSV" });
  document.body.replaceChildren(group);
  [...group.querySelectorAll("button")].find((it) => it.textContent === "SVG")?.click();
  await new Promise((done) => setTimeout(done));
  expect(group.querySelector("[role=status]")?.textContent).toContain("too many for SVG");
});

test("a picture of lines is a file of XML, whatever the names hold, and says what it leaves out", () => {
  const bad = "\u0000<img>&\u202e\ud800\uffff";
  const picture = linesPicture(bad, [{ parts: [{ text: `  ${bad} ` }] }, ...Array.from({ length: 1000 }, () => ({ parts: [{ text: "x".repeat(5000) }], end: "9" }))]);
  const texts = [...picture.querySelectorAll("text")].map((it) => it.textContent ?? "");
  expect(texts[0]).toBe("  \\u0000<img>&\\u202e\ufffd\ufffd ");
  expect(texts[texts.length - 1]).toBe("… and 601 lines more: the CSV has all");
  expect(Math.max(...texts.map((it) => it.length))).toBeLessThan(260);
  expect(Number(picture.getAttribute("height"))).toBeLessThan(8000);
  expect(/[\u0000\ufffe\uffff]|<img/.test(new XMLSerializer().serializeToString(picture))).toBe(false);
});
