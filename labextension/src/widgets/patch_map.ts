import { insertBelow } from "../kit/cells";
import { floats } from "../kit/host";
import { type Chooses, placesOf, selected } from "../kit/places";
import { widget } from "../kit/widget";
import { patchMap, type State } from "../views/patch_map";

export default widget(({ el, model, get, ask, select, follow, onSelect, expects }) => {
  const names: string[] = get("names");
  const view = patchMap(el, {
    run: (layers, places) => ask("run", { layers, places }),
    select: (row, column) => select(selected(get<Chooses[]>("chooses"), [row, column])),
    insert: (code) => insertBelow(el, model, code),
    copy: (text) => (navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject(new Error("no clipboard"))),
  });
  follow({
    "title rows columns quantity estimated": () =>
      view.show({ title: get("title"), note: get("note"), names, rows: get("rows"), columns: get("columns"), quantity: get("quantity"), first: get("first"), estimated: floats(get("estimated")) }),
    ran: () => view.setExact(floats(get("ran"))),
    state: () => view.setState(get("state")),
    code: () => view.setCode(get("code")),
  });
  onSelect((selection) => {
    const [row = null, column = null] = placesOf(get<Chooses[]>("chooses"), selection);
    view.mark(row ?? Number.NaN, column ?? Number.NaN);
  });
  expects(() => get<State>("state").of !== undefined);
  return view;
});
