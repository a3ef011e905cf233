import type { Book } from "./cells";

/** What a widget is given by its host (JupyterLab, Notebook, VS Code, marimo), through anywidget. */
export interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  on(event: string, heard: (...args: never[]) => void): void;
  off(event: string, heard: (...args: never[]) => void): void;
  send(content: unknown, callbacks?: unknown, buffers?: ArrayBuffer[]): void;
  /** In JupyterLab and Notebook 7: what knows the kernel and the notebook. */
  widget_manager?: { kernel?: Kernel | null; context?: Book };
}

/** A kernel as the host sees it. */
export interface Kernel {
  statusChanged?: Signal<string>;
}

export interface Signal<T> {
  connect(heard: (sender: unknown, told: T) => void): void;
  disconnect(heard: (sender: unknown, told: T) => void): void;
}

export interface Place {
  model: Model;
  el: HTMLElement;
}

export type Ending = () => void;

/** What is to be undone when a view goes away, in reverse order. */
export class Endings {
  private readonly all: Ending[] = [];

  add(ending: Ending): void {
    this.all.push(ending);
  }

  /** Hear an event of the model until the end. */
  hear(model: Model, event: string, heard: (...args: never[]) => void): void {
    model.on(event, heard);
    this.add(() => model.off(event, heard));
  }

  /** Hear an event of the page until the end. */
  listen(target: EventTarget, event: string, heard: (event: Event) => void): void {
    target.addEventListener(event, heard);
    this.add(() => target.removeEventListener(event, heard));
  }

  run(): void {
    for (const ending of this.all.splice(0).reverse()) ending();
  }
}

/** The float32 numbers of a binary trait or buffer. */
export function floats(bytes: DataView): Float32Array {
  return new Float32Array(own(bytes));
}

/** The bytes of a binary trait or buffer, from their first: within a message they may begin anywhere. */
export function own(bytes: DataView): ArrayBuffer {
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
}
