/** The code cell that a view stands below, changed in the page: JupyterLab, Notebook 7, or any host that listens. */
import type { Model } from "./host";

interface SharedCell {
  node?: HTMLElement;
  model?: { sharedModel?: { getSource(): string; setSource(text: string): void } };
}

interface EditorView {
  state: { doc: { length: number; toString(): string } };
  dispatch(change: unknown): void;
}

/** The notebook that a view is in, as its host keeps it (`Model.widget_manager.context`). */
export interface Book {
  model?: { sharedModel?: { cells: { cell_type?: string }[]; insertCell(index: number, cell: { cell_type: string; source: string }): unknown } };
}

export type Outcome = "changed" | "other" | "unreachable";

/** Put a text in the place of a cell's, if that is still what it was: `other` where it is not. */
export function replaceCell(view: Element, before: string, after: string): Outcome {
  const asked = new CustomEvent("insitu-replace-cell", { bubbles: true, cancelable: true, composed: true, detail: { before, after } });
  if (!view.dispatchEvent(asked)) return "changed";
  const cell = view.closest(".jp-Cell");
  return cell ? (byApplication(cell, before, after) ?? byEditor(cell, before, after) ?? "unreachable") : "unreachable";
}

/**
 * Put a new code cell below the one a view stands in; whether that was done. The host may listen for the event instead.
 * A page without a notebook (VS Code, marimo), or a view that was taken out of its cell, has no such place.
 */
export function insertBelow(view: Element, model: Model, source: string): boolean {
  const asked = new CustomEvent("insitu-insert-cell", { bubbles: true, cancelable: true, composed: true, detail: { source } });
  if (!view.dispatchEvent(asked)) return true;
  const shared = model.widget_manager?.context?.model?.sharedModel;
  const at = Number(view.closest<HTMLElement>(".jp-Notebook .jp-Cell[data-windowed-list-index]")?.dataset.windowedListIndex ?? Number.NaN);
  if (typeof shared?.insertCell !== "function" || shared.cells[at]?.cell_type !== "code") return false;
  shared.insertCell(at + 1, { cell_type: "code", source });
  return true;
}

/** Through JupyterLab's own model, where the page exposes it. */
function byApplication(cell: Element, before: string, after: string): Outcome | null {
  const app = (window as unknown as { jupyterapp?: { shell?: { currentWidget?: { content?: { widgets?: SharedCell[] } } } } }).jupyterapp;
  const found = app?.shell?.currentWidget?.content?.widgets?.find((it) => it.node === cell);
  const source = found?.model?.sharedModel;
  if (!source) return null;
  if (!alike(source.getSource(), before)) return "other";
  source.setSource(after);
  return "changed";
}

/** Through the cell's editor: CodeMirror keeps its view on the element it draws, by a name that has changed once. */
function byEditor(cell: Element, before: string, after: string): Outcome | null {
  const content = cell.querySelector(".jp-InputArea-editor .cm-content") as (Element & { cmTile?: { view?: EditorView }; cmView?: { view?: EditorView } }) | null;
  const editor = content?.cmTile?.view ?? content?.cmView?.view;
  if (!editor || typeof editor.dispatch !== "function") return null;
  if (!alike(editor.state.doc.toString(), before)) return "other";
  editor.dispatch({ changes: { from: 0, to: editor.state.doc.length, insert: after } });
  return "changed";
}

function alike(one: string, other: string): boolean {
  return one.replace(/\s+$/, "") === other.replace(/\s+$/, "");
}
