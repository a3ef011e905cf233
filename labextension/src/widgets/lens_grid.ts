import { Endings, floats, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import { onSelect, select } from "../kit/selection";
import { lensGrid, type Measure, type Top } from "../views/lens_grid";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const view = lensGrid(el, {
    select: (layer, token) => select(model, { layer, token }),
    top: async (row, column) => (await requests.ask("top", { row, column })).value as Top,
  });
  const list = (name: string): string[] => model.get(name) as string[];
  const show = (): void =>
    view.show({
      title: model.get("title") as string,
      names: list("names"),
      rows: list("rows"),
      columns: list("columns"),
      texts: list("texts"),
      measures: model.get("measures") as Measure[],
      values: (model.get("values") as DataView[]).map(floats),
    });
  show();
  endings.hear(model, "change:values", show);
  onSelect(model, endings, ({ layer, token }) => view.mark(layer ?? null, token ?? null));
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
