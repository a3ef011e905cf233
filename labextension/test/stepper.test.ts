import { expect, test } from "vitest";
import sample from "../samples/stepper.json";
import { Refused } from "../src/kit/requests";
import { stepper, type Row, type Standing, type Text, type Value } from "../src/views/stepper";

function shown() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const asked: [string, unknown][] = [];
  let fails = false;
  const view = stepper(el, {
    do: (what, given = {}) => (asked.push([what, given]), fails ? Promise.reject(new Refused({ what: "no", why: "because", next: "so" })) : Promise.resolve()),
    into: () => Promise.reject(new Error("no way in")),
    select: () => undefined,
  });
  view.setPlace(sample.title, sample.place as Standing);
  view.setRows(sample.rows as Row[]);
  view.setText(sample.source as unknown as Text);
  view.setValue(sample.value as unknown as Value, new Float32Array(sample.picture));
  view.setCode(sample.code);
  const button = (name: string) => [...el.querySelectorAll("button")].find((it) => it.textContent === name) as HTMLButtonElement;
  const rows = () => [...el.querySelectorAll('[role="treeitem"]')] as HTMLElement[];
  const press = (key: string, shiftKey = false) => el.querySelector('[role="tree"]')?.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }));
  const settle = () => new Promise((done) => setTimeout(done));
  return { el, view, asked, button, rows, press, settle, fail: () => (fails = true) };
}

test("it says where the pass stands, in words, in the tree and in the text", () => {
  const { el } = shown();
  expect(el.querySelector(".site code")?.textContent).toBe(sample.place.where);
  expect(el.querySelector(".row.here [role=img]")?.getAttribute("aria-label")).toBe("the pass stands here");
  expect(el.querySelector(".line.at code")?.textContent).toBe(sample.source.lines.find(([number]) => number === sample.source.line)?.[1]);
});

test("each button asks for what it says", () => {
  const { button, asked } = shown();
  for (const name of ["Next operation", "Next module", "Next layer", "Finish", "Close"]) button(name).click();
  expect(asked.map(([what]) => what)).toEqual(["operation", "module", "layer", "finish", "leave"]);
});

test("a module that is clicked can be run to, at either side, with keys too", () => {
  const { rows, button, press, asked } = shown();
  rows()[1]?.click();
  const path = sample.rows[1]?.[0];
  button("its input").click();
  press("ArrowDown");
  press("Enter");
  expect(asked).toEqual([["to", { path, side: "input" }], ["to", { path: sample.rows[2]?.[0], side: "output" }]]);
});

test("an operation that is clicked in the text can be run to", () => {
  const { el, button, asked } = shown();
  (el.querySelector(".names button") as HTMLElement).click();
  button("its output").click();
  expect(asked).toEqual([["to", { path: sample.source.module, side: "output", operation: el.querySelector(".names button")?.textContent }]]);
});

test("edits are asked for as expressions of the value", () => {
  const { el, button, asked } = shown();
  (el.querySelector("[aria-label=Factor]") as HTMLInputElement).value = "0.5";
  button("Scale by").click();
  button("Zero").click();
  (el.querySelector("form input[type=text]") as HTMLInputElement).value = " value[0] ";
  el.querySelector("form")?.dispatchEvent(new Event("submit", { cancelable: true }));
  expect(asked.map(([, given]) => (given as { text: string }).text)).toEqual(["value * 0.5", "torch.zeros_like(value)", "value[0]"]);
});

test("while something is done nothing else is asked for, and what went wrong is shown", async () => {
  const { el, view, button, fail, settle } = shown();
  view.setBusy("layer");
  expect(button("Next layer").disabled).toBe(true);
  view.setBusy("");
  expect(button("Next layer").disabled).toBe(false);
  view.setTrouble({ what: "it does not fit", why: "Why: shapes", next: "Next: reshape" });
  expect(el.querySelector("[role=alert]")?.textContent).toContain("it does not fit");
  view.setTrouble(null);
  expect(el.querySelector("[role=alert]")).toBeNull();
  fail();
  button("Next layer").click();
  await settle();
  expect(el.querySelector("[role=alert]")?.textContent).toContain("because");
});

test.each([["finished", "has finished"], ["failed", "failed"], ["closed", "was closed"]])("a pass that is %s says so, and offers nothing", (state, words) => {
  const { el, view, button } = shown();
  view.setPlace(sample.title, { ...(sample.place as Standing), state: state as Standing["state"], where: state });
  view.setText(null);
  view.setValue({ parts: [], number: 0, top: [], text: "", tokens: [] }, new Float32Array());
  expect(el.querySelector(".site")?.textContent).toContain(words);
  expect(["Next operation", "Finish", "Close", "Zero"].map((name) => button(name).disabled)).toEqual([true, true, true, true]);
});

test("the likeliest tokens are shown as text, and a gap in the tree opens", () => {
  const { el, view, asked, rows } = shown();
  view.setValue({ ...(sample.value as unknown as Value), top: [["<img src=x>", 0.5], ["\n", 0.25]] }, new Float32Array(sample.picture));
  expect([...el.querySelectorAll(".top code")].map((it) => it.textContent)).toEqual(["<img src=x>", "⏎"]);
  expect(el.querySelector("img")).toBeNull();
  view.setRows([...(sample.rows as Row[]), [":all", "… 9 more", "", 1, "gap", false, false]]);
  rows()[rows().length - 1]?.click();
  expect(asked).toEqual([["open", { path: ":all" }]]);
});
