import { expect, test } from "vitest";
import sample from "../samples/source_browser.json";
import { Refused } from "../src/kit/requests";
import { dotted, sourceBrowser, type Listing } from "../src/views/source_browser";

function shown() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const chosen: string[] = [];
  const gone: string[][] = [];
  const view = sourceBrowser(el, {
    select: (operation) => chosen.push(operation),
    into(trail) {
      gone.push(trail);
      if (trail.length > 1) return Promise.reject(new Refused({ what: "no way in", why: "it is built in", next: "read its output" }));
      return Promise.resolve({ path: "p", function: "inner", file: "f.py:1", lines: [[1, "return a + b", ["add_0"]]] });
    },
  });
  view.show(sample.title, sample.listing as unknown as Listing);
  const named = () => [...el.querySelectorAll(".names button")] as HTMLElement[];
  const settle = () => new Promise((done) => setTimeout(done));
  return { el, view, chosen, gone, named, settle };
}

test("each operation stands beside its line, and a click tells Python its name", () => {
  const { named, chosen, el } = shown();
  named()[0]?.click();
  expect(chosen).toEqual([named()[0]?.textContent]);
  expect(el.querySelector(".chosen code")?.textContent).toContain(`.source.${chosen[0]}.output`);
});

test("a double click goes into what is called, and the crumbs lead back", async () => {
  const { named, settle, el, gone } = shown();
  const name = named()[0]?.textContent as string;
  named()[0]?.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  await settle();
  expect(gone).toEqual([[name]]);
  expect(named().map((it) => it.textContent)).toEqual(["add_0"]);
  (el.querySelector("nav button") as HTMLElement).click();
  await settle();
  expect(named()[0]?.textContent).toBe(name);
});

test("where there is no way in, it says why", async () => {
  const { named, settle, el } = shown();
  named()[0]?.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  await settle();
  named()[0]?.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  await settle();
  expect(el.querySelector("[role=alert]")?.textContent).toContain("it is built in");
});

test("paths are written as Python reads them", () => {
  expect(dotted("transformer.h.0.attn.source")).toBe("transformer.h[0].attn.source");
  expect(dotted("h.1.2")).toBe("h[1][2]");
});
