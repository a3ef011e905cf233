/** The one selection that all views share: a token, a layer, a head, a step. */
import type { Endings, Model } from "./host";

export interface Selection {
  token?: number | null;
  layer?: number | null;
  head?: number | null;
  step?: number | null;
}

/** How it travels. */
interface Told extends Selection {
  /** What a view has chosen itself; the rest may be old news. */
  named?: string[];
  /** The choice that a page tells of, and the last one that Python has heard of. */
  serial?: string;
  heard?: string;
}

/** A view's own choices go before what Python tells, until Python has heard of the last of them. */
export class Choices {
  private serial = "";
  private unheard: Selection = {};
  private count = 0;
  private readonly page = String(Math.random());

  constructor(private readonly model: Model, endings: Endings) {
    endings.hear(model, "change:selection", () => {
      if (this.told.heard === this.serial) this.unheard = {};
    });
  }

  get now(): Selection {
    const { named: _, serial: __, heard: ___, ...told } = this.told;
    return { ...told, ...this.unheard };
  }

  /** Select something; what is not named stays. */
  select(further: Selection): void {
    const { now, told } = this;
    this.unheard = { ...this.unheard, ...further };
    this.serial = `${this.page} ${++this.count}`;
    const named = [...new Set([...(told.named ?? []), ...Object.keys(this.unheard)])]; // a second view's too
    this.model.set("selection", { ...now, ...further, named, serial: this.serial });
    this.model.save_changes();
  }

  private get told(): Told {
    return (this.model.get("selection") as Told | undefined) ?? {};
  }
}
