import { floats } from "../kit/host";
import { widget } from "../kit/widget";
import { patchMap, type State } from "../views/patch_map";

export default widget(({ el, get, ask, select, follow, onSelect, expects }) => {
  const names: string[] = get("names");
  const first = (): [number, number] => get("first");
  const view = patchMap(el, {
    run: (layers, places) => ask("run", { layers, places }),
    select(row, column) {
      const [above, before] = first();
      const [layer, place] = [above + row, before + column];
      select(names[1] === "head" ? { layer, head: place } : { layer, token: place });
    },
  });
  follow({
    "title rows columns quantity estimated": () =>
      view.show({ title: get("title"), note: get("note"), names, rows: get("rows"), columns: get("columns"), quantity: get("quantity"), estimated: floats(get("estimated")) }),
    ran: () => view.setExact(floats(get("ran"))),
    state: () => view.setState(get("state")),
    code: () => view.setCode(get("code")),
  });
  onSelect(({ layer, head, token }) => {
    const [above, before] = first();
    view.mark((layer ?? Number.NaN) - above, ((names[1] === "head" ? head : token) ?? Number.NaN) - before);
  });
  expects(() => get<State>("state").of !== undefined);
  return view;
});
