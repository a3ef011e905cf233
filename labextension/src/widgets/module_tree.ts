import { widget } from "../kit/widget";
import { moduleTree } from "../views/module_tree";

export default widget(({ el, endings, get, put, ask, follow }) => {
  const view = moduleTree(el, {
    select: (path) => put("selected", path),
    about: (row) => ask("about", { row }),
  });
  const marks = (): void => view.setMarks(get("marks"));
  follow({
    nodes: () => (view.setNodes(get("title"), get("nodes")), marks()),
    marks,
    selected: () => view.setSelected(get("selected")),
  });
  const name = Math.random().toString(36).slice(2);
  const watched = (open: boolean): void => void ask("watched", { view: name, open }).catch(() => undefined);
  watched(true);
  endings.add(() => watched(false));
  return view;
});
