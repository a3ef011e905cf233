import { floats } from "../kit/host";
import { widget } from "../kit/widget";
import { cacheInspector, type Picture } from "../views/cache_inspector";

export default widget(({ el, get, put, ask, answer, follow }) => {
  const view = cacheInspector(el, {
    rows: (first, end, words) => ask("rows", { first, end, words }),
    numbers: (which) => ask("numbers", { which }),
    hunt: (start) => ask("hunt", { start }),
    picture: async (wanted) => {
      const { value, buffers } = await answer("picture", { ...wanted });
      const [values, counts] = buffers.map(floats);
      return { ...(value as Picture), values: values ?? new Float32Array(), counts: counts ?? new Float32Array() };
    },
    choose: (which) => put("chosen", which),
  });
  follow({
    count: () => view.show(get("title"), get("count"), get("size_bytes"), get("compares"), get("first")),
    chosen: () => view.setChosen(get("chosen")),
  });
  return view;
});
