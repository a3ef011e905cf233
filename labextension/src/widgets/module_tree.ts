import { widget } from "../kit/widget";
import { moduleTree, nodesOf } from "../views/module_tree";

export default widget(({ el, endings, get, put, ask, select, follow, onSelect }) => {
  const view = moduleTree(el, {
    select(path, layer) {
      put("selected", path);
      if (layer !== null) select({ layer });
    },
    about: (row) => ask("about", { row }),
    overlay: (isOn) => put("overlay", isOn),
  });
  follow({
    nodes: () => view.setNodes(get("title"), nodesOf(get("nodes")), get("marks")),
    marks: () => view.setMarks(get("marks")),
    reach: () => view.setReach(get("reach") ?? {}),
    selected: () => view.setSelected(get("selected")),
  });
  onSelect(({ layer }) => view.setLayer(layer ?? null));
  const name = Math.random().toString(36).slice(2);
  const watched = (open: boolean): void => void ask("watched", { view: name, open }).catch(() => undefined);
  watched(true);
  endings.add(() => watched(false));
  return view;
});
