import { widget } from "../kit/widget";
import { sourceBrowser } from "../views/source_browser";

export default widget(({ el, get, put, ask, follow }) => {
  const view = sourceBrowser(el, {
    select: (operation) => put("selected", operation),
    into: (trail) => ask("into", { trail }),
  });
  follow({
    listing: () => view.show(get("title"), get("listing")),
    selected: () => view.setSelected(get("selected")),
  });
  return view;
});
