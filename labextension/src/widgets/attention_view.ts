import { floats } from "../kit/host";
import { type Chooses, placesOf, selected } from "../kit/places";
import { widget } from "../kit/widget";
import { attentionView, type Numbers } from "../views/attention_view";

export default widget(({ el, get, answer, select, follow, onSelect }) => {
  const numbers = async (name: string, given: Record<string, unknown>): Promise<Numbers> => {
    const { value, buffers } = await answer(name, given);
    return { shape: (value as { shape: number[] }).shape, values: floats(buffers[0] as DataView) };
  };
  const view = attentionView(el, {
    select: (layer, head, token) => select(selected(get<Chooses[]>("chooses"), [layer, head, token])),
    heads: (layer) => numbers("heads", { layer }),
    tile: (layer, head, rows, columns) => numbers("tile", { layer, head, rows, columns }),
    query: (layer, head, query) => numbers("query", { layer, head, query }),
  });
  follow({
    shown: () =>
      view.show({ title: get("title"), note: get("note"), names: get("names"), layers: get("layers"), heads: get("heads"), queries: get("query_tokens"), keys: get("key_tokens"), size: get("size") }),
  });
  onSelect((selection) => {
    const [layer = null, head = null, token = null] = placesOf(get<Chooses[]>("chooses"), selection);
    view.mark(layer, head, token);
  });
  return view;
});
