import { Endings, floats, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import { onSelect, select } from "../kit/selection";
import { denoisingView, type State, type Step } from "../views/denoising_view";

type Told = Omit<Step, "maps"> & { maps: DataView };

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const view = denoisingView(el, {
    select: (step) => select(model, { step }),
    stop: () => requests.ask("stop"),
    async steps(first) {
      const { value, buffers } = await requests.ask("steps", { first });
      const { steps, more } = value as { steps: Step[]; more: boolean };
      return { steps: steps.map((step, index) => ({ ...step, picture: buffers[2 * index] as DataView, maps: floats(buffers[2 * index + 1] as DataView) })), more };
    },
  });
  const state = (): void => view.state(model.get("state") as State);
  const latest = (): void => {
    const told = model.get("latest") as Partial<Told>;
    if (told.number !== undefined) view.step({ ...(told as Told), maps: floats(told.maps as DataView) });
  };
  state();
  view.about({ title: model.get("title") as string, prompt: model.get("prompt") as string, tokens: model.get("tokens") as string[] });
  endings.hear(model, "change:state", state);
  endings.hear(model, "change:latest", latest);
  onSelect(model, endings, ({ step }) => view.mark(step ?? null));
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
