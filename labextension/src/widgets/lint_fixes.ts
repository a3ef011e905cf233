import { replaceCell } from "../kit/cells";
import { widget } from "../kit/widget";
import { lintFixes } from "../views/lint_fixes";

export default widget(({ el, get, follow }) => {
  const view = lintFixes(el, {
    fix: (text) => replaceCell(el, get("cell"), text),
    copy: (text) => (navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject(new Error("no clipboard"))),
  });
  follow({ items: () => view.show(get("items")) });
  return view;
});
