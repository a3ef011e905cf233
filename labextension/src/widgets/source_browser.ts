import { Endings, type Place } from "../kit/host";
import { Requests } from "../kit/requests";
import { sourceBrowser, type Listing } from "../views/source_browser";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const view = sourceBrowser(el, {
    select(operation) {
      model.set("selected", operation);
      model.save_changes();
    },
    into: async (trail) => (await requests.ask("into", { trail })).value as Listing,
  });
  const show = (): void => view.show(model.get("title") as string, model.get("listing") as Listing);
  show();
  endings.hear(model, "change:listing", show);
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
