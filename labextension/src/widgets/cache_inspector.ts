import { floats } from "../kit/host";
import { widget } from "../kit/widget";
import { cacheInspector, type News, type Picture } from "../views/cache_inspector";

export default widget(({ el, get, put, ask, answer, select, follow, onSelect, onSaid }) => {
  const view = cacheInspector(el, {
    rows: (first, end, words) => ask("rows", { first, end, words }),
    numbers: (which) => ask("numbers", { which }),
    hunt: (start) => ask("hunt", { start }),
    picture: async (wanted) => {
      const { value, buffers } = await answer("picture", { ...wanted });
      const [values, counts] = buffers.map(floats);
      return { ...(value as Picture), values: values ?? new Float32Array(), counts: counts ?? new Float32Array() };
    },
    choose(which, of) {
      put("chosen", which);
      if (of) select(of);
    },
    place: (layer, step, chosen) => ask("place", { layer, step, chosen }),
  });
  view.show(get("title"), get("count"), get("size_bytes"), get("compares"), get("first")); // what comes later is news
  onSaid<{ news?: News }>(({ news }) => news && view.grow(news));
  follow({
    growing: () => view.setGrowing(get("growing")),
    chosen: () => view.setChosen(get("chosen")),
  });
  onSelect(({ layer, step }) => view.follow({ layer, step }));
  return view;
});
