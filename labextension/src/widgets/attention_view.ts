import { Endings, floats, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import { onSelect, select } from "../kit/selection";
import { attentionView, type Numbers } from "../views/attention_view";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const numbers = async (name: string, given: Record<string, unknown>): Promise<Numbers> => {
    const { value, buffers } = await requests.ask(name, given);
    return { shape: (value as { shape: number[] }).shape, values: floats(buffers[0] as DataView) };
  };
  const view = attentionView(el, {
    select: (layer, head, token) => select(model, { layer, head, token }),
    heads: (layer) => numbers("heads", { layer }),
    tile: (layer, head, rows, columns) => numbers("tile", { layer, head, rows, columns }),
    query: (layer, head, query) => numbers("query", { layer, head, query }),
  });
  const list = (name: string): string[] => model.get(name) as string[];
  const show = (): void =>
    view.show({ title: model.get("title") as string, note: model.get("note") as string, layers: list("layers"), heads: list("heads"), queries: list("query_tokens"), keys: list("key_tokens") });
  show();
  endings.hear(model, "change:query_tokens", show);
  onSelect(model, endings, ({ layer, head, token }) => view.mark(layer ?? null, head ?? null, token ?? null));
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
