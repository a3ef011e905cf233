/** Questions to Python, each with a number; errors come back as values. */
import type { Endings, Model } from "./host";

export interface Answer {
  value: unknown;
  buffers: DataView[];
}

export interface Trouble {
  what: string;
  why: string;
  next: string;
}

interface Reply {
  answer?: number;
  value?: unknown;
  trouble?: Trouble;
}

export class Refused extends Error {
  constructor(readonly trouble: Trouble) {
    super(trouble.what);
  }
}

export class Requests {
  private number = 0;
  private readonly waiting = new Map<number, { give: (answer: Answer) => void; refuse: (error: Error) => void }>();

  constructor(
    private readonly model: Model,
    endings: Endings,
    private readonly changed: () => void = () => undefined,
  ) {
    endings.hear(model, "msg:custom", (content: Reply, buffers?: DataView[]) => this.heard(content, buffers ?? []));
    endings.add(() => {
      for (const { refuse } of this.waiting.values()) refuse(new Error("the view is gone"));
      this.waiting.clear();
    });
  }

  /** Whether a question is still open. */
  get isWaiting(): boolean {
    return this.waiting.size > 0;
  }

  /** Ask Python for something; it answers by the method of that name. */
  ask(name: string, given: Record<string, unknown> = {}): Promise<Answer> {
    const ask = ++this.number;
    return new Promise((give, refuse) => {
      this.waiting.set(ask, { give, refuse });
      try {
        this.model.send({ ask, name, given });
        this.changed();
      } catch (error) {
        this.waiting.delete(ask); // a host throws where the kernel is dead
        refuse(error instanceof Error ? error : new Error(String(error)));
      }
    });
  }

  private heard(content: Reply, buffers: DataView[]): void {
    const asked = content.answer === undefined ? undefined : this.waiting.get(content.answer);
    if (content.answer === undefined || asked === undefined) return;
    this.waiting.delete(content.answer);
    this.changed();
    if (content.trouble) asked.refuse(new Refused(content.trouble));
    else asked.give({ value: content.value, buffers });
  }
}

/** The latest of many: answers to earlier questions are dropped. */
export function latest(): <T>(question: Promise<T>) => Promise<T> {
  let current = 0;
  return (question) => {
    const mine = ++current;
    return new Promise((give, refuse) => {
      question.then(
        (answer) => mine === current && give(answer),
        (error: unknown) => mine === current && refuse(error instanceof Error ? error : new Error(String(error))),
      );
    });
  };
}
