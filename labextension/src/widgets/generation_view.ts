import { Endings, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import { onSelect, select } from "../kit/selection";
import type { Lane, Measure, Step } from "../views/generation_data";
import { generationView } from "../views/generation_view";

interface Latest {
  branch?: number;
  number: number;
  step: Step;
}

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const view = generationView(el, {
    select: (step, layer) => select(model, layer === undefined ? { step } : { step, layer }),
    focus: (branch) => (model.set("focus", branch), model.save_changes()),
    fork: (fork) => requests.ask("fork", { ...fork }),
    stop: () => requests.ask("stop"),
    steps: async (branch, first) => (await requests.ask("steps", { branch, first })).value as { steps: Step[]; more: boolean },
  });
  const list = (name: string): string[] => model.get(name) as string[];
  const about = (): void =>
    view.about({
      title: model.get("title") as string,
      prompt: list("prompt"),
      layers: list("layers"),
      measures: model.get("measures") as Measure[],
      forks: model.get("forks") as boolean,
    });
  const lanes = (): void => view.lanes(model.get("lanes") as Lane[]);
  const focus = (): void => view.focus(model.get("focus") as number);
  const latest = (): void => {
    const { branch, number, step } = model.get("latest") as Latest;
    if (branch !== undefined) view.step(branch, number, step);
  };
  about();
  lanes();
  focus();
  latest();
  endings.hear(model, "change:layers", about);
  endings.hear(model, "change:lanes", lanes);
  endings.hear(model, "change:focus", focus);
  endings.hear(model, "change:latest", latest);
  onSelect(model, endings, ({ step }) => view.mark(step ?? null));
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
