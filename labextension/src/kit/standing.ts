/**
 * A view that can move. When the twins of a view that a cell has filled are put into its output, JupyterLab and Notebook 7
 * take its element away, and ask for another view of the same model: the one there is moves into the new place, with all
 * that was typed, chosen and unfolded in it, its scroll places and its focus.
 */
import { h } from "./dom";
import type { Endings, Model } from "./host";

type Heard = (...given: never[]) => void;

/** How long a place is kept open for its view to come back. */
const PATIENCE_MS = 2000;

/** A model as a host gives it for one place; who listens to it goes along to the next. */
export class Passing implements Model {
  private heard: [event: string, heard: Heard][] = [];

  constructor(private model: Model) {}

  get(name: string): unknown {
    return this.model.get(name);
  }

  set(name: string, value: unknown): void {
    this.model.set(name, value);
  }

  save_changes(): void {
    this.model.save_changes();
  }

  send(content: unknown, callbacks?: unknown, buffers?: ArrayBuffer[]): void {
    this.model.send(content, callbacks, buffers);
  }

  on(event: string, heard: Heard): void {
    this.heard.push([event, heard]);
    this.model.on(event, heard);
  }

  off(event: string, heard: Heard): void {
    this.heard = this.heard.filter((it) => it[0] !== event || it[1] !== heard);
    this.model.off(event, heard);
  }

  get widget_manager(): Model["widget_manager"] {
    return this.model.widget_manager;
  }

  pass(model: Model): void {
    for (const [event, heard] of this.heard) this.model.off(event, heard);
    this.model = model;
    for (const [event, heard] of this.heard) model.on(event, heard);
  }
}

export class Standing {
  /** What the view is drawn into. */
  readonly element = h("div");
  readonly model: Passing;
  private around: ParentNode | null = null;
  private height = 0;
  private wasSeen = false;
  private isMoving = false;
  private focused: Element | null = null;
  private readonly scrolled = new Map<Element, [left: number, top: number]>();

  constructor(
    model: Model,
    private el: HTMLElement,
    private readonly endings: Endings,
  ) {
    this.model = new Passing(model);
    el.replaceChildren(this.element);
    const sized = new ResizeObserver(() => this.settle());
    sized.observe(this.element);
    const taken = new MutationObserver(() => (this.el.parentNode ? this.settle() : this.keepPlace()));
    endings.add(() => (sized.disconnect(), taken.disconnect()));
    this.watch = () => this.around && taken.observe(this.around, { childList: true });
    const scrolled = ({ target }: Event): void => {
      if (target instanceof Element && this.element.isConnected && !this.isMoving) this.scrolled.set(target, [target.scrollLeft, target.scrollTop]);
    };
    this.element.addEventListener("scroll", scrolled, true);
    endings.listen(this.element, "focusin", ({ target }) => (this.focused = target as Element));
    // A host that takes the element away takes the focus too: that is no wish of the user's.
    endings.listen(this.element, "focusout", ({ target }) => queueMicrotask(() => this.element.isConnected && this.focused === target && (this.focused = null)));
  }

  private readonly watch: () => void;

  /** Whether it shows this model, and its place has been taken away. */
  isLeft(model: Model): boolean {
    const own = model.get("layout"); // of each widget its own, where a host has them
    return Boolean(own) && own === this.model.get("layout") && this.wasSeen && !this.el.parentNode;
  }

  move(model: Model, el: HTMLElement): void {
    this.el = el;
    this.isMoving = true;
    this.model.pass(model);
    el.replaceChildren(this.element);
    requestAnimationFrame(() => this.settle()); // where it comes back in one frame, its size has not changed
  }

  /** A place goes away; the view ends with the one it stands in. */
  leave(el: HTMLElement): void {
    if (el === this.el) this.endings.run();
  }

  /** It has been laid out. */
  private settle(): void {
    if (!this.element.offsetHeight) return;
    [this.wasSeen, this.height] = [true, this.element.offsetHeight];
    if (this.around !== this.el.parentNode) {
      this.around = this.el.parentNode;
      this.watch();
    }
    if (!this.isMoving) return;
    this.isMoving = false;
    this.hold("");
    for (const [element, [left, top]] of this.scrolled)
      if (this.element.contains(element)) [element.scrollLeft, element.scrollTop] = [left, top];
      else this.scrolled.delete(element);
    const { activeElement } = document;
    if (this.focused instanceof HTMLElement && this.element.contains(this.focused) && (!activeElement || activeElement.contains(this.element))) this.focused.focus({ preventScroll: true });
  }

  /** The page does not jump while the view is away. */
  private keepPlace(): void {
    if (!this.around?.isConnected) return;
    this.hold(`${this.height}px`);
    setTimeout(() => this.hold(""), PATIENCE_MS);
  }

  private hold(height: string): void {
    if (this.around instanceof HTMLElement) this.around.style.minHeight = height;
  }
}
