/** The last lines of a log, numbered, and those of them that are listed. */
import { grouped } from "../kit/table";

/** Lines from Python: columns, with tags by the place in the batch. */
export interface Batch {
  first: number;
  times: number[];
  texts: string[];
  tags: Record<string, string[]>;
}

export interface Line {
  number: number;
  time: number;
  text: string;
  tags: string[];
  level: string;
  /** How many lines are missing here; the text says so. */
  gap?: number;
}

export const LINES_MAX = 5000;
const LEVELS = ["debug", "info", "warning", "error"];

export class Lines {
  all: Line[] = [];
  /** Those that the search, the tags and the level leave. */
  shown: Line[] = [];
  words = "";
  readonly wanted = new Set<string>();
  readonly tags = new Map<string, number>();
  heard = 0;
  dropped = 0;
  began = 0;
  private level = 0;

  get isFiltered(): boolean {
    return this.words !== "" || this.wanted.size > 0 || this.level > 0;
  }

  /** Add what is new of a batch; gives how many more listed lines have gone at the front than come. */
  add(batch: Batch): number {
    const end = batch.first + batch.texts.length;
    const came = this.all.length ? this.before(batch) : 0;
    if (end > this.heard) this.after(batch);
    return this.trim() - came;
  }

  /** Those that the view was not there to hear, told later than what came since. */
  private before(batch: Batch): number {
    const added = read(batch, 0, (this.all[0] as Line).number - batch.first);
    const listed = added.filter((line) => this.lists(line));
    this.began = added[0]?.time ?? this.began;
    this.count(added, 1);
    this.all.unshift(...added);
    this.shown.unshift(...listed);
    return listed.length;
  }

  private after(batch: Batch): void {
    const added = read(batch, this.heard ? this.heard - batch.first : 0);
    const missing = this.heard ? batch.first - this.heard : 0;
    if (missing > 0) {
      this.dropped += missing;
      added.unshift({ number: batch.first - 0.5, time: batch.times[0] ?? 0, text: `… ${grouped(missing)} lines came too fast and are not shown`, tags: [], level: "info", gap: missing });
    }
    if (!this.all.length) this.began = added[0]?.time ?? 0;
    this.heard = batch.first + batch.texts.length;
    this.count(added, 1);
    this.all.push(...added);
    this.shown.push(...added.filter((line) => this.lists(line)));
  }

  /** List the lines that hold these words. */
  seek(words: string): void {
    this.words = words.trim().toLowerCase();
    this.list();
  }

  /** List the lines with a tag, or no longer; with several, those that have any of them. */
  want(tag: string): void {
    if (!this.wanted.delete(tag)) this.wanted.add(tag);
    this.list();
  }

  /** List the lines of a level and those above. */
  least(level: string): void {
    this.level = Math.max(0, LEVELS.indexOf(level));
    this.list();
  }

  clear(): void {
    this.all = [];
    this.shown = [];
    this.tags.clear();
    [this.heard, this.dropped, this.began] = [0, 0, 0];
  }

  private lists(line: Line): boolean {
    if (this.level && LEVELS.indexOf(line.level) < this.level) return false;
    if (this.wanted.size && !line.tags.some((tag) => this.wanted.has(tag))) return false;
    return !this.words || line.text.toLowerCase().includes(this.words);
  }

  private list(): void {
    this.shown = this.isFiltered ? this.all.filter((line) => this.lists(line)) : [...this.all];
  }

  private trim(): number {
    const gone = this.all.splice(0, Math.max(0, this.all.length - LINES_MAX));
    this.count(gone, -1);
    const first = this.all[0]?.number ?? 0;
    let listed = 0;
    while (listed < this.shown.length && (this.shown[listed] as Line).number < first) listed++;
    this.shown.splice(0, listed);
    return listed;
  }

  private count(lines: Line[], by: number): void {
    for (const { tags } of lines) for (const tag of tags) this.tags.set(tag, (this.tags.get(tag) ?? 0) + by);
  }
}

/** The lines of a batch, from one place to before another. */
function read(batch: Batch, from: number, to = batch.texts.length): Line[] {
  const lines: Line[] = [];
  for (let at = Math.max(0, from); at < Math.min(to, batch.texts.length); at++) {
    const tags = batch.tags[at] ?? [];
    lines.push({ number: batch.first + at, time: batch.times[at] ?? 0, text: batch.texts[at] ?? "", tags, level: LEVELS.find((level) => tags.includes(level)) ?? "info" });
  }
  return lines;
}
