import { Endings, floats, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import { select } from "../kit/selection";
import { patchMap, type State } from "../views/patch_map";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const names = model.get("names") as string[];
  const view = patchMap(el, {
    run: (layers, places) => requests.ask("run", { layers, places }),
    select: (layer, place) => select(model, names[1] === "head" ? { layer, head: place } : { layer, token: place }),
  });
  const show = (): void =>
    view.show({
      title: model.get("title") as string,
      names,
      rows: model.get("rows") as string[],
      columns: model.get("columns") as string[],
      quantity: model.get("quantity") as string,
      estimated: floats(model.get("estimated") as DataView),
    });
  const follow: Record<string, () => void> = {
    estimated: show,
    ran: () => view.setExact(floats(model.get("ran") as DataView)),
    state: () => view.setState(model.get("state") as State),
    code: () => view.setCode(model.get("code") as string),
  };
  for (const [name, heard] of Object.entries(follow)) {
    heard();
    endings.hear(model, `change:${name}`, heard);
  }
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
