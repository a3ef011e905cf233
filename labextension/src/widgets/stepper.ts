import { Endings, floats, type Place } from "../kit/host";
import { Requests, type Trouble } from "../kit/requests";
import { select } from "../kit/selection";
import { stepper, type Row, type Standing, type Text, type Value } from "../views/stepper";
import type { Listing } from "../views/source_browser";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const view = stepper(el, {
    do: (what, given = {}) => requests.ask("do", { what, with: given }),
    into: async (trail) => (await requests.ask("into", { trail })).value as Listing,
    select: (token) => select(model, { token }),
  });
  const text = (): Text | null => {
    const given = model.get("source") as Text | Record<string, never>;
    return "lines" in given ? (given as Text) : null;
  };
  const follow: Record<string, () => void> = {
    place: () => view.setPlace(model.get("title") as string, model.get("place") as Standing),
    rows: () => view.setRows(model.get("rows") as Row[]),
    source: () => view.setText(text()),
    value: () => view.setValue(model.get("value") as Value, floats(model.get("picture") as DataView)),
    busy: () => view.setBusy(model.get("busy") as string),
    trouble: () => view.setTrouble(model.get("trouble") as Trouble),
    code: () => view.setCode(model.get("code") as string[]),
  };
  for (const [name, heard] of Object.entries(follow)) {
    heard();
    endings.hear(model, `change:${name}`, heard);
  }
  endings.hear(model, "change:picture", follow.value as () => void);
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
