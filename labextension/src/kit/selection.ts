/** The one selection that all views share: a token, a layer, a head, a step. */
import type { Model } from "./host";

export interface Selection {
  token?: number | null;
  layer?: number | null;
  head?: number | null;
  step?: number | null;
  /** What this view has chosen itself, until Python has heard of it: the rest may be old news. */
  named?: string[];
}

export function selection(model: Model): Selection {
  return (model.get("selection") as Selection | undefined) ?? {};
}

/** Select something; what is not named stays. */
export function select(model: Model, further: Selection): void {
  const now = selection(model);
  const named = [...new Set([...(now.named ?? []), ...Object.keys(further)])];
  model.set("selection", { ...now, ...further, named });
  model.save_changes();
}
