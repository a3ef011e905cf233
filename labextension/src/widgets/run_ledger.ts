import { Endings, type Place } from "../kit/host";
import { Requests, type Trouble } from "../kit/requests";
import { runLedger, type About, type Compared, type Row } from "../views/run_ledger";

function render({ model, el }: Place): () => void {
  const endings = new Endings();
  const requests = new Requests(model, endings);
  const ask = async <T>(name: string, given: Record<string, unknown>): Promise<T> => (await requests.ask(name, given)).value as T;
  const view = runLedger(el, {
    about: (number) => ask<About>("about", { number }),
    compare: (first, second) => ask<Compared>("compare", { first, second }),
    again: (number, seeded) => ask("again", { number, seeded }),
    export: (numbers) => ask<string>("export", { numbers }),
    choose(numbers) {
      model.set("chosen", numbers);
      model.save_changes();
    },
  });
  const follow: Record<string, () => void> = {
    rows: () => view.setRows(model.get("rows") as Row[]),
    chosen: () => view.setChosen(model.get("chosen") as number[]),
    busy: () => view.setBusy(model.get("busy") as number),
    trouble: () => view.setTrouble(model.get("trouble") as Trouble),
  };
  for (const [name, heard] of Object.entries(follow)) {
    heard();
    endings.hear(model, `change:${name}`, heard);
  }
  endings.add(() => view.end());
  return () => endings.run();
}

export default { render };
