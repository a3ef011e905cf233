import { byLabels, placesOf, selected } from "../kit/places";
import { widget } from "../kit/widget";
import type { Lane, Step } from "../views/generation_data";
import { generationView } from "../views/generation_view";

interface Latest {
  branch?: number;
  number: number;
  step: Step;
}

export default widget(({ el, model, get, put, ask, select, follow, onSelect, expects }) => {
  const layers = () => byLabels("layer", get<string[]>("layers"));
  const view = generationView(el, {
    select: (step, layer) => select(layer === undefined ? { step } : { step, ...selected([layers()], [layer]) }),
    focus: (branch) => put("focus", branch),
    measure: (number) => put("measure", number),
    draft: (draft, isTyping) => (isTyping ? model.set("draft", draft) : put("draft", draft)), // Python need not hear each key
    fork: (fork) => ask("fork", { ...fork }),
    stop: () => ask("stop"),
    steps: (branch, first) => ask("steps", { branch, first }),
  });
  follow({
    "title prompt layers measures forks unforkable": () => view.about({ title: get("title"), prompt: get("prompt"), layers: get("layers"), measures: get("measures"), forks: get("forks"), unforkable: get("unforkable") }),
    measure: () => view.measure(get("measure")),
    lanes: () => view.lanes(get("lanes")),
    focus: () => view.focus(get("focus")),
    latest: () => {
      const { branch, number, step } = get<Latest>("latest");
      if (branch !== undefined) view.step(branch, number, step);
    },
  });
  view.draft(get("draft"));
  onSelect((selection) => {
    const [layer = null] = placesOf([layers()], selection);
    view.mark(selection.step ?? null, Number.isNaN(layer) ? null : layer);
  });
  expects(() => get<Lane[]>("lanes").some(({ state }) => state === "running" || state === "waiting"));
  return view;
});
