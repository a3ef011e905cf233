/** The files that a view saves, instead of a download: press the button of a kind, and read. */
import { afterEach, vi } from "vitest";

export interface Saved {
  name: string;
  text: string;
}

afterEach(() => vi.restoreAllMocks());

export async function saved(el: HTMLElement, kind: string): Promise<Saved> {
  let blob: Blob | undefined;
  let name = "";
  vi.spyOn(URL, "createObjectURL").mockImplementation((it) => ((blob = it as Blob), "blob:it"));
  vi.spyOn(HTMLElement.prototype, "click").mockImplementation(function (this: HTMLElement) {
    name = this.getAttribute("download") ?? "";
  });
  const button = [...el.querySelectorAll<HTMLElement>('[role=group][aria-label^="Export "] button')].find((it) => it.textContent === kind);
  if (!button) throw new Error(`there is no ${kind} to save`);
  button.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  await vi.waitUntil(() => blob);
  return { name, text: await (blob as Blob).text() };
}
