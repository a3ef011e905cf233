import { replaceCell } from "../kit/cells";
import { Endings, type Place } from "../kit/host";
import { lintFixes, type Item } from "../views/lint_fixes";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const view = lintFixes(el, {
    fix: (text) => replaceCell(el, model.get("cell") as string, text),
    copy: (text) => (navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject(new Error("no clipboard"))),
  });
  const show = (): void => view.show(model.get("items") as Item[]);
  show();
  endings.hear(model, "change:items", show);
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
