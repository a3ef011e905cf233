import { floats } from "../kit/host";
import { type Chooses, placesOf, selected } from "../kit/places";
import { widget } from "../kit/widget";
import { lensGrid } from "../views/lens_grid";

export default widget(({ el, get, put, ask, select, follow, onSelect }) => {
  const view = lensGrid(el, {
    select: (row, column) => select(selected(get<Chooses[]>("chooses"), [row, column])),
    top: (row, column) => ask("top", { row, column }),
    measure: (number) => put("measure", number),
  });
  follow({
    "title names rows columns texts measures values": () =>
      view.show({
        title: get("title"), note: get("note"), names: get("names"), first: get("first"), rows: get("rows"), columns: get("columns"), texts: get("texts"), measures: get("measures"),
        values: get<DataView[]>("values").map(floats),
      }),
    measure: () => view.setMeasure(get("measure")),
  });
  onSelect((selection) => {
    const [row = null, column = null] = placesOf(get<Chooses[]>("chooses"), selection);
    view.mark(row, column);
  });
  return view;
});
