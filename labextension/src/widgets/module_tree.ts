import { Endings, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import { moduleTree, type About, type Marks, type Nodes } from "../views/module_tree";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const view = moduleTree(el, {
    select(path) {
      model.set("selected", path);
      model.save_changes();
    },
    about: async (row) => (await requests.ask("about", { row })).value as About,
  });
  const nodes = (): void => view.setNodes(model.get("title") as string, model.get("nodes") as Nodes);
  const marks = (): void => view.setMarks(model.get("marks") as Marks);
  nodes();
  marks();
  const name = Math.random().toString(36).slice(2);
  const watched = (open: boolean): void => void requests.ask("watched", { view: name, open }).catch(() => undefined);
  watched(true);
  endings.hear(model, "change:nodes", () => (nodes(), marks()));
  endings.hear(model, "change:marks", marks);
  endings.add(() => view.end());
  endings.add(() => watched(false));
  return () => endings.run();
}

export default { render };
