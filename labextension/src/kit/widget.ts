/**
 * A view as a widget: opened by its host, fed by the model's traits, ended with all that it began.
 *
 *     export default widget(({ el, ask, get, put, follow }) => {
 *       const view = moduleTree(el, { select: (path) => put("selected", path), about: (row) => ask("about", { row }) });
 *       follow({ marks: () => view.setMarks(get("marks")) });
 *       return view;
 *     });
 */
import { kernelWatch } from "./alive";
import { h } from "./dom";
import { Endings, type Model, type Place } from "./host";
import { type Answer, Requests } from "./requests";
import { Choices, type Selection } from "./selection";
import { Standing } from "./standing";

export interface View {
  end(): void;
  /** Says that the kernel no longer answers, or does again; a line above the view does otherwise. */
  setGone?(isGone: boolean): void;
  /** Hears of the same, where the line above the view says it. */
  unanswered?(isGone: boolean): void;
}

export interface Opened {
  el: HTMLElement;
  model: Model;
  endings: Endings;
  /** The value of a trait. */
  get<T>(name: string): T;
  /** A trait as the view has changed it. */
  put(name: string, value: unknown): void;
  /** What Python answers. */
  ask<T>(name: string, given?: Record<string, unknown>): Promise<T>;
  /** The same with its buffers. */
  answer(name: string, given?: Record<string, unknown>): Promise<Answer>;
  select(further: Selection): void;
  /** Show traits, now and when they change; names that one function shows stand side by side: `"value picture"`. */
  follow(traits: Record<string, () => void>): void;
  /** The shared selection, now and when it changes. */
  onSelect(heard: (selection: Selection) => void): void;
  /** Whether more is to come from the kernel: then its silence is noticed. Told by the view; its open questions count too. */
  expects(isWaiting: () => boolean): void;
  /** What Python says without having been asked. */
  onSaid<T>(heard: (content: T) => void): void;
}

const GONE = "The kernel does not answer: it is busy, or gone. What it told before is shown as it was.\nRun the cell again when it is back.";

export function widget(open: (opened: Opened) => View): { render(place: Place): () => void } {
  const standing = new Set<Standing>();
  return {
    render(place) {
      const left = [...standing].find((it) => it.isLeft(place.model));
      left?.move(place.model, place.el);
      const here = left ?? begin(place);
      return () => here.leave(place.el);
    },
  };

  function begin(place: Place): Standing {
    const endings = new Endings();
    const here = new Standing(place.model, place.el, endings);
    standing.add(here);
    endings.add(() => standing.delete(here));
    const { model, element: el } = here;
    const choices = new Choices(model, endings);
    const requests = new Requests(model, endings, () => el.toggleAttribute("data-asking", requests.isWaiting));
    let [isWaiting, spoke, isOwn] = [() => false, () => undefined as void, false];
    const heard = (event: string, tell: (...given: never[]) => void): void => endings.hear(model, event, (...given) => (isOwn || spoke(), tell(...given)));
    const view = open({
      el, model, endings,
      get: <T>(name: string) => model.get(name) as T,
      put(name, value) {
        isOwn = true; // what the view itself changes is no word of the kernel
        try {
          model.set(name, value);
        } finally {
          isOwn = false;
        }
        model.save_changes();
      },
      ask: async <T>(name: string, given?: Record<string, unknown>) => (await requests.ask(name, given)).value as T,
      answer: (name, given) => requests.ask(name, given),
      select: (further) => choices.select(further),
      follow(traits) {
        for (const [names, show] of Object.entries(traits)) {
          show();
          for (const name of names.split(" ")) heard(`change:${name}`, show);
        }
      },
      onSelect(tell) {
        tell(choices.now);
        endings.hear(model, "change:selection", () => tell(choices.now));
      },
      expects: (told) => (isWaiting = told),
      onSaid: (tell) => endings.hear(model, "msg:custom", tell as (content: never) => void),
    });
    const gone = goneLine(el);
    const tell = (isGone: boolean): void => {
      view.unanswered?.(isGone);
      if (view.setGone) view.setGone(isGone);
      else gone(isGone);
    };
    spoke = kernelWatch(model, requests, endings, tell, () => isWaiting() || requests.isWaiting);
    endings.hear(model, "msg:custom", () => spoke());
    endings.add(() => view.end());
    return here;
  }
}

/** A line above a view that says that its kernel is gone, as long as it is. */
function goneLine(el: HTMLElement): (isGone: boolean) => void {
  const line = h("div", { class: "trouble gone", role: "alert" }, GONE);
  return (isGone) => (isGone ? el.querySelector(".insitu-view")?.prepend(line) : line.remove());
}
