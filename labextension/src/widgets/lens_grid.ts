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
  const show = (): void =>
    view.show({
      title: get("title"), note: get("note"), names: get("names"), first: get("first"), rows: get("rows"), columns: get("columns"), texts: get("texts"), measures: get("measures"),
      values: get<DataView[]>("values").map(floats),
    });
  show();
  let isDue = true; // one message changes several traits: it is drawn once
  follow({
    "title note names rows columns texts measures values": () => {
      if (!isDue) queueMicrotask(() => ((isDue = false), show()));
      isDue = true;
    },
    measure: () => view.setMeasure(get("measure")),
  });
  isDue = false;
  onSelect((selection) => {
    const [row = null, column = null] = placesOf(get<Chooses[]>("chooses"), selection);
    view.mark(row, column);
  });
  return view;
});
