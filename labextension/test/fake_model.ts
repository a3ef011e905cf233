import type { Model } from "../src/kit/host";
import { bytes, numbers } from "./numbers";

type Heard = (...given: never[]) => void;
type Answer = (name: string, given: Record<string, unknown>) => unknown;

/** A model as a host gives it, with a kernel that answers as it is told, `buffers` as such; `undefined` is no answer. */
export class FakeModel implements Model {
  readonly sent: { ask: number; name: string; given: Record<string, unknown> }[] = [];
  private readonly heard = new Map<string, Heard[]>();
  private unsaved = new Set<string>();

  constructor(
    readonly state: Record<string, unknown>,
    public answer: Answer = () => undefined,
  ) {}

  get(name: string): unknown {
    return this.state[name];
  }

  set(name: string, value: unknown): void {
    this.state[name] = value;
    this.unsaved.add(name);
    this.tell(`change:${name}`);
  }

  save_changes(): void {
    this.unsaved.clear();
  }

  get isSaved(): boolean {
    return this.unsaved.size === 0;
  }

  on(event: string, heard: Heard): void {
    this.heard.set(event, [...(this.heard.get(event) ?? []), heard]);
  }

  off(event: string, heard: Heard): void {
    this.heard.set(event, (this.heard.get(event) ?? []).filter((one) => one !== heard));
  }

  /** How many still listen. */
  get listeners(): number {
    return [...this.heard.values()].flat().length;
  }

  send(content: unknown): void {
    const asked = content as { ask: number; name: string; given: Record<string, unknown> };
    this.sent.push(asked);
    const value = this.answer(asked.name, asked.given);
    if (value === undefined) return;
    const parts = (value as { buffers?: (number | string)[][] } | null)?.buffers ?? [];
    const told = value instanceof Error ? { answer: asked.ask, trouble: { what: value.message, why: "", next: "" } } : { answer: asked.ask, value };
    void Promise.resolve().then(() => this.tell("msg:custom", told, parts.map((part) => bytes(numbers(part)))));
  }

  tell(event: string, ...given: unknown[]): void {
    for (const heard of this.heard.get(event) ?? []) heard(...(given as never[]));
  }
}
