import { floats } from "../kit/host";
import { widget } from "../kit/widget";
import { denoisingView, type State, type Step } from "../views/denoising_view";

type Told = Omit<Step, "maps"> & { maps: DataView };

export default widget(({ el, get, ask, answer, select, follow, onSelect, expects }) => {
  const view = denoisingView(el, {
    select: (step) => select({ step }),
    stop: () => ask("stop"),
    async steps(first) {
      const { value, buffers } = await answer("steps", { first });
      const { steps, more } = value as { steps: Step[]; more: boolean };
      return { steps: steps.map((step, index) => ({ ...step, picture: buffers[2 * index] as DataView, maps: floats(buffers[2 * index + 1] as DataView) })), more };
    },
  });
  follow({
    state: () => view.state(get("state")),
    "title prompt tokens note": () => view.about({ title: get("title"), prompt: get("prompt"), tokens: get("tokens"), note: get("note") }),
    latest: () => {
      const told = get<Partial<Told>>("latest");
      if (told.number !== undefined) view.step({ ...(told as Told), maps: floats(told.maps as DataView) });
    },
  });
  onSelect(({ step }) => view.mark(step ?? null));
  expects(() => get<State>("state").name === "running");
  return view;
});
