/** A list of very many rows of one height, of which only those in sight exist. */
import { h } from "./dom";
import type { Endings } from "./host";

const SPARE = 8;
const UNSEEN = 420;

/**
 * The browser is asked where the list stands when it has just laid it out, and not while rows are made: each such
 * question would have it lay out the page once more.
 */
export class Rows {
  readonly element: HTMLDivElement;
  private readonly inside: HTMLDivElement;
  private count = 0;
  private readonly drawn = new Map<number, HTMLElement>();
  private top = 0;
  private seen = 0;
  private wanted = 0; // where to scroll when there is something to scroll

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
      asked = requestAnimationFrame(() => this.look());
    });
    const sized = new ResizeObserver(() => this.look());
    sized.observe(this.element);
    endings.add(() => sized.disconnect());
  }

  /** How high the list stands, known before it is laid out. */
  setHeight(height: number): void {
    this.element.style.height = `${height}px`;
    this.seen = height;
  }

  /** So many rows there are now; at the end of them, if that is asked for. */
  setCount(count: number, isAtEnd = false): void {
    this.count = count;
    this.inside.style.height = `${count * this.height}px`;
    if (isAtEnd) return this.scroll(count * this.height);
    this.top = this.within(this.top);
    this.refresh();
  }

  /** The rows in sight, drawn anew; one that is as it was stays the same element, so that no click on it is lost. */
  refresh(): void {
    const [first, end] = this.window(SPARE);
    for (const [index, row] of this.drawn) if (index < first || index >= end) this.drawn.delete(index), row.remove();
    let next = this.inside.firstChild;
    for (let index = first; index < end; index++) {
      const [row, was] = [this.made(index), this.drawn.get(index)];
      if (was?.isEqualNode(row)) next = was.nextSibling;
      else {
        this.drawn.set(index, row);
        if (was) was.replaceWith(row);
        else this.inside.insertBefore(row, next);
        next = row.nextSibling;
      }
    }
  }

  private made(index: number): HTMLElement {
    const row = this.draw(index);
    row.classList.add("placed");
    row.style.top = `${index * this.height}px`;
    row.style.height = `${this.height}px`;
    return row;
  }

  /** Scroll as little as brings a row into sight; or have it in the middle, wherever the list stood. */
  show(index: number, isMiddle = false): void {
    if (isMiddle) return this.scroll(this.within((index + 0.5) * this.height - (this.seen || UNSEEN) / 2));
    const [above, below] = [index * this.height, (index + 1) * this.height - this.seen];
    if (above < this.top) this.scroll(above);
    else if (below > this.top) this.scroll(below);
    else this.refresh();
  }

  /** Rows have gone at the front: those in sight stay there. */
  shift(gone: number): void {
    if (!gone) return;
    this.element.scrollTop -= gone * this.height;
    this.measure();
  }

  private scroll(top: number): void {
    this.element.scrollTop = top;
    this.measure();
    if (!this.element.clientHeight) this.top = this.wanted = this.within(top);
    this.refresh();
  }

  private within(top: number): number {
    return Math.max(0, Math.min(top, this.count * this.height - (this.seen || UNSEEN)));
  }

  private window(spare: number): [first: number, end: number] {
    const end = Math.ceil((this.top + (this.seen || UNSEEN)) / this.height);
    return [Math.max(0, Math.floor(this.top / this.height) - spare), Math.min(this.count, end + spare)];
  }

  private measure(): void {
    const { clientHeight } = this.element;
    if (clientHeight) [this.seen, this.top] = [clientHeight, this.element.scrollTop];
  }

  /** See where the list stands; few rows left on a side are made more. */
  private look(): void {
    if (this.wanted && this.element.clientHeight) [this.element.scrollTop, this.wanted] = [this.wanted, 0];
    this.measure();
    const [first, end] = this.window(SPARE / 2);
    if (first < end && !(this.drawn.has(first) && this.drawn.has(end - 1))) this.refresh();
  }
}
