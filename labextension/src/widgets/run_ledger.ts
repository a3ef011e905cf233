import { widget } from "../kit/widget";
import { runLedger } from "../views/run_ledger";

export default widget(({ el, get, put, ask, follow, expects }) => {
  const view = runLedger(el, {
    about: (number) => ask("about", { number }),
    compare: (first, second) => ask("compare", { first, second }),
    again: (number, seeded) => ask("again", { number, seeded }),
    export: (numbers) => ask("export", { numbers }),
    choose: (numbers) => put("chosen", numbers),
    show: (numbers) => put("shown", numbers),
  });
  follow({
    rows: () => view.setRows(get("rows")),
    chosen: () => view.setChosen(get("chosen")),
    shown: () => view.setShown(get("shown")),
    busy: () => view.setBusy(get("busy")),
    trouble: () => view.setTrouble(get("trouble")),
  });
  expects(() => get("busy") !== 0);
  return view;
});
