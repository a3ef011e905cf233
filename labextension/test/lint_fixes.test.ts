import { expect, test } from "vitest";
import sample from "../samples/lint_fixes.json";
import { replaceCell, type Outcome } from "../src/kit/cells";
import { lintFixes, type Item } from "../src/views/lint_fixes";

const items = sample.items as unknown as Item[];

function shown(outcome: Outcome, given: Item[] = items) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const [put, copied]: [string[], string[]] = [[], []];
  const view = lintFixes(el, {
    fix(text) {
      put.push(text);
      return outcome;
    },
    copy(text) {
      copied.push(text);
      return Promise.resolve();
    },
  });
  view.show(given);
  const press = async (name: string) => {
    [...el.querySelectorAll("button")].find((it) => it.textContent === name)?.click();
    await new Promise((done) => setTimeout(done));
    return el.querySelector("[role=status]")?.textContent;
  };
  return { el, put, copied, press };
}

test("a finding says what, why and what instead, as text", () => {
  const nasty = { ...(items[0] as Item), what: "<img onerror=alert(1)>" };
  const { el } = shown("changed", [nasty]);
  expect(el.querySelector("img")).toBeNull();
  expect(el.textContent).toContain("<img onerror=alert(1)>");
  expect([...el.querySelectorAll(".change code")].map((it) => it.textContent)).toEqual(["h = h * 2", "h[:] = h * 2"]);
});

test("Fix puts the repaired cell in place, once", async () => {
  const { put, press, el } = shown("changed");
  expect(await press("Fix")).toContain("run it again");
  expect(put).toEqual([items[0]?.fixed]);
  expect([...el.querySelectorAll("button")].every((it) => it.disabled)).toBe(true);
});

test("a cell that was changed meanwhile, or cannot be reached, is copied instead", async () => {
  const other = shown("other");
  expect(await other.press("Fix")).toContain("left as it is");
  expect(other.copied).toEqual([items[0]?.fixed]);
  const far = shown("unreachable");
  expect(await far.press("Fix")).toContain("copied");
});

test("a finding without a repair has no button", () => {
  const { el } = shown("changed", [{ ...(items[0] as Item), fixed: "", change: [] }]);
  expect(el.querySelectorAll("button").length).toBe(0);
});

function inCell(doc: string) {
  const cell = document.createElement("div");
  cell.className = "jp-Cell";
  cell.innerHTML = '<div class="jp-InputArea-editor"><div class="cm-content"></div></div><div class="view"></div>';
  const changes: unknown[] = [];
  const view = { state: { doc: { length: doc.length, toString: () => doc } }, dispatch: (it: unknown) => changes.push(it) };
  Object.assign(cell.querySelector(".cm-content") as Element, { cmTile: { view } });
  document.body.replaceChildren(cell);
  return { place: cell.querySelector(".view") as Element, changes };
}

test("the editor's text is replaced only while it is what was looked at", () => {
  const same = inCell("a = 1\n");
  expect(replaceCell(same.place, "a = 1", "a = 2")).toBe("changed");
  expect(same.changes).toEqual([{ changes: { from: 0, to: 6, insert: "a = 2" } }]);
  const edited = inCell("a = 3");
  expect(replaceCell(edited.place, "a = 1", "a = 2")).toBe("other");
  expect(edited.changes).toEqual([]);
});

test("a host that listens comes first, and without any the cell is out of reach", () => {
  const { place, changes } = inCell("a = 1");
  const heard: unknown[] = [];
  const listen = (event: Event) => {
    heard.push((event as CustomEvent).detail);
    event.preventDefault();
  };
  document.addEventListener("insitu-replace-cell", listen);
  expect(replaceCell(place, "a = 1", "a = 2")).toBe("changed");
  document.removeEventListener("insitu-replace-cell", listen);
  expect(heard).toEqual([{ before: "a = 1", after: "a = 2" }]);
  expect(changes).toEqual([]);
  const alone = document.createElement("div");
  document.body.replaceChildren(alone);
  expect(replaceCell(alone, "a", "b")).toBe("unreachable");
});
