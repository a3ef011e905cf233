import { floats } from "../kit/host";
import { widget } from "../kit/widget";
import { lensGrid } from "../views/lens_grid";

export default widget(({ el, get, put, ask, select, follow, onSelect }) => {
  const view = lensGrid(el, {
    select(row, column) {
      const [above, before] = get<[number, number]>("first");
      select({ layer: above + row, token: before + column });
    },
    top: (row, column) => ask("top", { row, column }),
    measure: (number) => put("measure", number),
  });
  follow({
    "title names rows columns texts measures values": () =>
      view.show({
        title: get("title"), note: get("note"), names: get("names"), rows: get("rows"), columns: get("columns"), texts: get("texts"), measures: get("measures"),
        values: get<DataView[]>("values").map(floats),
      }),
    measure: () => view.setMeasure(get("measure")),
  });
  onSelect(({ layer, token }) => {
    const [above, before] = get<[number, number]>("first");
    view.mark((layer ?? Number.NaN) - above, (token ?? Number.NaN) - before);
  });
  return view;
});
