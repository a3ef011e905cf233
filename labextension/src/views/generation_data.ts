/** A generation as the view holds it: branches that leave one another, and the steps of each. */

export type Top = [token: string, id: number | null, chance: number | null];

export interface Step {
  token: string;
  id: number | null;
  chance: number | null;
  entropy: number | null;
  top: Top[];
  texts: string[];
  /** For each measure, a number a layer. */
  values: (number | null)[][];
  forced: boolean;
}

export interface Trouble {
  what: string;
  why: string;
  next: string;
}

export interface Lane {
  number: number;
  parent: number | null;
  start: number;
  why: string;
  state: string;
  trouble: Trouble | null;
}

export interface Measure {
  quantity: string;
  unit: string;
  limits: [number, number] | null;
}

export class Generation {
  lanes: Lane[] = [];
  /** Whether no more is heard of what is running. */
  isCut = false;
  private readonly own = new Map<number, { steps: Step[]; known: number }>();

  /** A step has come; by its number in the whole text. Gives whether those before it are here. */
  put(branch: number, number: number, step: Step): boolean {
    const own = this.own.get(branch) ?? { steps: [], known: 0 };
    this.own.set(branch, own);
    own.steps[number - (this.lanes[branch]?.start ?? 0)] = step;
    while (own.steps[own.known]) own.known++;
    return own.known === own.steps.length;
  }

  /** How many of a branch's own steps are here without a gap. */
  known(branch: number): number {
    return this.own.get(branch)?.known ?? 0;
  }

  /** The steps of a branch, with those it shares with the one it left. */
  steps(branch: number): Step[] {
    const lane = this.lanes[branch];
    const own = this.own.get(branch)?.steps.slice(0, this.known(branch)) ?? [];
    if (!lane || lane.parent === null) return own;
    return [...this.steps(lane.parent).slice(0, lane.start), ...own];
  }

  /** Branches as a tree is read: each one's forks below it, and how deep they stand. */
  ordered(): { lane: Lane; depth: number }[] {
    const below = (parent: number | null, depth: number): { lane: Lane; depth: number }[] =>
      this.lanes.filter((lane) => lane.parent === parent).flatMap((lane) => [{ lane, depth }, ...below(lane.number, depth + 1)]);
    return below(null, 0);
  }

  /** Which branch is shown beside one: the one it left, or the last that left it. */
  beside(branch: number): number | null {
    const lane = this.lanes[branch];
    if (!lane) return null;
    return lane.parent ?? this.lanes.filter((other) => other.parent === branch).at(-1)?.number ?? null;
  }

  get length(): number {
    return Math.max(0, ...this.lanes.map((lane) => lane.start + this.known(lane.number)));
  }
}

/** The numbers from `count`, at most `room` of them, around one that is looked at. */
export function windowed(count: number, at: number, room: number): [number, number] {
  const first = Math.max(0, Math.min(at - Math.floor(room / 2), count - room));
  return [first, Math.min(count, first + room)];
}
