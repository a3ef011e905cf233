/** A list of very many rows of one height, of which only those in sight exist. */
import { h } from "./dom";
import type { Endings } from "./host";

const SPARE = 8;

export class Rows {
  readonly element: HTMLDivElement;
  private readonly inside: HTMLDivElement;
  private count = 0;
  private drawn = "";

  constructor(
    private readonly height: number,
    private readonly draw: (index: number) => HTMLElement,
    endings: Endings,
    attributes: Record<string, string> = {},
  ) {
    this.inside = h("div", { style: "position:relative", role: "presentation" });
    this.element = h("div", { class: "scroll", ...attributes }, this.inside);
    let asked = 0;
    endings.listen(this.element, "scroll", () => {
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(() => this.refresh(false));
    });
    const sized = new ResizeObserver(() => this.refresh(false));
    sized.observe(this.element);
    endings.add(() => sized.disconnect());
  }

  setCount(count: number): void {
    this.count = count;
    this.inside.style.height = `${count * this.height}px`;
    this.refresh(true);
  }

  /** The rows in sight, drawn anew when they changed. */
  refresh(changed = true): void {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / this.height) - SPARE);
    const last = Math.min(this.count, Math.ceil((scrollTop + (clientHeight || 420)) / this.height) + SPARE);
    const window = `${first}-${last}`;
    if (!changed && window === this.drawn) return;
    this.drawn = window;
    const rows: HTMLElement[] = [];
    for (let index = first; index < last; index++) {
      const row = this.draw(index);
      row.style.cssText += `;position:absolute;top:${index * this.height}px;height:${this.height}px;left:0;right:0`;
      rows.push(row);
    }
    this.inside.replaceChildren(...rows);
  }

  show(index: number): void {
    const top = index * this.height;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.element.scrollTop = top + this.height - clientHeight;
    this.refresh(true);
  }
}
