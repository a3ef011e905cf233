/** The one selection that all views share: a token, a layer, a head, a step. */
import type { Model } from "./host";

export interface Selection {
  token?: number | null;
  layer?: number | null;
  head?: number | null;
  step?: number | null;
}

export function selection(model: Model): Selection {
  return (model.get("selection") as Selection | undefined) ?? {};
}

/** Select something; what is not named stays. */
export function select(model: Model, further: Selection): void {
  model.set("selection", { ...selection(model), ...further });
  model.save_changes();
}

/** Hear what is selected: now, where something is, and whenever it changes. */
