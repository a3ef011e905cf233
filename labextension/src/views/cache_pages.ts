/** The rows of a cache's table that are here: asked for a page at a time, and more of them while a pass goes on. */

/** Number, name, step where there are several, shape, kind, bytes, layer. */
export type Row = [number, string, number | null, number[], string, number, number | null];

export interface Page {
  total: number;
  rows: Row[];
}

const PAGE = 60;

export class Pages {
  /** How many rows there are; how many hold the words, where some are looked for. */
  total = 0;
  private pages = new Map<number, Row[]>();
  private asked = new Set<number>();
  private generation = 0;

  constructor(
    private readonly ask: (first: number, end: number, words: string) => Promise<Page>,
    private readonly words: () => string,
    /** A page came; and whether there are more rows by that, or fewer. */
    private readonly came: (isOther: boolean) => void,
    private readonly failed: (error: unknown) => void,
  ) {}

  row(index: number): Row | undefined {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  /** Everything anew, the first page if it is here already. */
  reset(first?: Page): void {
    this.pages = new Map();
    this.asked = new Set();
    this.generation++;
    if (!first) return this.want(0);
    this.asked.add(0);
    this.take(0, first, true);
  }

  /** Ask for the page of a row, once. */
  want(index: number): void {
    const page = Math.floor(index / PAGE);
    if (this.asked.has(page)) return;
    this.asked.add(page);
    const mine = this.generation;
    this.ask(page * PAGE, (page + 1) * PAGE, this.words()).then((given) => mine === this.generation && this.take(page, given, page === 0), this.failed);
  }

  /** There are so many now. Rows that came or changed are given; where `rest` is said, others changed too: those `inSight` are asked for. */
  grow(count: number, rows: Row[], rest: boolean, inSight: number[]): void {
    const isAll = !this.words();
    for (const row of rows) this.put(row, isAll);
    if (isAll) this.total = count;
    for (const [page, there] of this.pages) if (there.length < PAGE) this.asked.delete(page); // it was the last one
    const seen = new Set(inSight.map((index) => Math.floor(index / PAGE)));
    if (rest) {
      for (const page of this.pages.keys()) if (!seen.has(page)) this.pages.delete(page);
      this.asked.clear();
      seen.forEach((page) => this.want(page * PAGE));
    }
    if (!isAll) {
      const next = Math.floor(this.total / PAGE);
      this.asked.delete(next);
      this.want(next * PAGE); // tells how many more hold the words
    }
  }

  private put(row: Row, isAll: boolean): void {
    if (!isAll) {
      for (const there of this.pages.values()) {
        const at = there.findIndex(([number]) => number === row[0]);
        if (at >= 0) there[at] = row;
      }
      return;
    }
    const [page, at] = [Math.floor(row[0] / PAGE), row[0] % PAGE];
    if (at === 0 && !this.pages.has(page)) this.pages.set(page, []), this.asked.add(page);
    const there = this.pages.get(page);
    if (there && at <= there.length) there[at] = row;
  }

  private take(page: number, given: Page, isFirst: boolean): void {
    const isAll = !this.words();
    const before = isFirst ? [] : (this.pages.get(page) ?? []);
    // What came since the question was answered is at the end.
    this.pages.set(page, isAll ? [...given.rows, ...before.slice(given.rows.length)] : given.rows);
    const total = isAll && !isFirst ? Math.max(given.total, this.total) : given.total;
    const isOther = isFirst || total !== this.total;
    this.total = total;
    this.came(isOther);
  }
}
