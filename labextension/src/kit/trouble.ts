/** A clear state in the view when something went wrong: what, why and what next. */
import { h } from "./dom";
import { Refused } from "./requests";

export function trouble(error: unknown): HTMLElement {
  const lines = error instanceof Refused ? [error.trouble.what, error.trouble.why, error.trouble.next] : [String(error)];
  return h("div", { class: "trouble", role: "alert" }, lines.filter(Boolean).join("\n"));
}
