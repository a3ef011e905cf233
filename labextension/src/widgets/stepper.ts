import { floats } from "../kit/host";
import { widget } from "../kit/widget";
import { type Block, stepper, type Text } from "../views/stepper";

export default widget(({ el, get, ask, select, follow, onSelect, expects }) => {
  const view = stepper(el, {
    do: (what, given = {}) => ask("do", { what, with: given }),
    into: (trail) => ask("into", { trail }),
    select: (chosen) => select(chosen),
  });
  const text = (): Text | null => {
    const given = get<Text | Record<string, never>>("source");
    return "lines" in given ? (given as Text) : null;
  };
  follow({
    place: () => view.setPlace(get("title"), get("place"), get<Block[] | undefined>("blocks")),
    rows: () => view.setRows(get("rows")),
    source: () => view.setText(text()),
    "value picture": () => view.setValue(get("value"), floats(get("picture"))),
    busy: () => view.setBusy(get("busy")),
    trouble: () => view.setTrouble(get("trouble")),
    code: () => view.setCode(get("code")),
  });
  onSelect((selection) => view.follow(selection));
  expects(() => get("busy") !== "");
  return view;
});
