import { Endings, floats, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import { cacheInspector, type Numbers, type Picture, type Row } from "../views/cache_inspector";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const ask = async <T>(name: string, given: Record<string, unknown>): Promise<T> => (await requests.ask(name, given)).value as T;
  const view = cacheInspector(el, {
    rows: (first, end, words) => ask<{ total: number; rows: Row[] }>("rows", { first, end, words }),
    numbers: (which) => ask<Record<string, Numbers>>("numbers", { which }),
    hunt: (start) => ask("hunt", { start }),
    picture: async (wanted) => {
      const { value, buffers } = await requests.ask("picture", { ...wanted });
      const [values, counts] = buffers.map(floats);
      return { ...(value as Picture), values: values ?? new Float32Array(), counts: counts ?? new Float32Array() };
    },
    choose(which) {
      model.set("chosen", which);
      model.save_changes();
    },
  });
  const show = (): void => view.show(model.get("title") as string, model.get("count") as number, model.get("size_bytes") as number, model.get("compares") as boolean);
  show();
  endings.hear(model, "change:count", show);
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
