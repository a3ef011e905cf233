/** Which of the shared selection the axes of a picture choose, as Python tells it (`insitu.widgets.places`). */
import type { Selection } from "./selection";

/** A name of the selection, or none; and the numbers of the places on the axis there, or the first of a row of them. */
export type Chooses = [name: keyof Selection | "", numbers: number | number[]];

/** What is selected where places are chosen, one an axis; null where none is. */
export function selected(axes: Chooses[], places: (number | null)[]): Selection {
  const found: Selection = {};
  axes.forEach(([name, numbers], axis) => {
    const place = places[axis];
    if (!name || place === undefined) return;
    found[name] = place === null ? null : typeof numbers === "number" ? numbers + place : (numbers[place] ?? null);
  });
  return found;
}

/** Where on each axis a selection stands: NaN where it is of no place of it, null where it tells nothing of it. */
export function placesOf(axes: Chooses[], selection: Selection): (number | null)[] {
  return axes.map(([name, numbers]) => {
    const number = name ? selection[name] : undefined;
    if (number === undefined || number === null) return null;
    if (typeof numbers === "number") return number >= numbers ? number - numbers : Number.NaN;
    const place = numbers.indexOf(number);
    return place < 0 ? Number.NaN : place;
  });
}

/** How a place of a grid stands in a file: positions by number and token, as a token may come twice; all else by its label. */
export function told(name: string, labels: string[], first = 0): { names: string[]; at(place: number): (string | number)[] } {
  const isToken = /(^|_)pos$/.test(name);
  return {
    names: isToken ? [name, name.replace(/pos$/, "token")] : [name],
    at: (place) => (isToken ? [first + place, labels[place] ?? ""] : [labels[place] ?? ""]),
  };
}

/** What an axis chooses whose places are known by their labels alone: numbers, or else their order. */
export function byLabels(name: keyof Selection, labels: string[]): Chooses {
  return [name, labels.every((label) => /^\d+$/.test(label)) ? labels.map(Number) : 0];
}
