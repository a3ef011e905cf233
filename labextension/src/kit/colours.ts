/** Colour maps that stay readable for every kind of colour vision, in light and dark. */
export type Rgb = readonly [number, number, number];

const POSITIVE: Rgb[] = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const SIGNED: Rgb[] = [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 90, 20]];
/** What stands for a value that is no number: no colour of the maps. */
export const MISSING: Rgb = [150, 60, 150];

function along(stops: Rgb[], share: number): Rgb {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [from, to] = [stops[low] as Rgb, stops[low + 1] as Rgb];
  const mixed = (i: 0 | 1 | 2): number => Math.round(from[i] + (to[i] - from[i]) * (at - low));
  return [mixed(0), mixed(1), mixed(2)];
}

export interface Scale {
  readonly low: number;
  readonly high: number;
  readonly signed: boolean;
  colour(value: number): Rgb;
}

/** A scale for values: around zero when some are below it, from the lowest otherwise. */
export function scale(values: ArrayLike<number>, limits?: [number, number]): Scale {
  let [low, high] = limits ?? [Infinity, -Infinity];
  if (!limits)
    for (let i = 0; i < values.length; i++) {
      const value = values[i] as number;
      if (!Number.isFinite(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  if (low > high) [low, high] = [0, 1];
  const signed = low < 0;
  if (signed) high = Math.max(-low, high), (low = -high);
  const width = high - low || 1;
  const stops = signed ? SIGNED : POSITIVE;
  return { low, high, signed, colour: (value) => (Number.isFinite(value) ? along(stops, (value - low) / width) : MISSING) };
}

export function css([r, g, b]: Rgb): string {
  return `rgb(${r},${g},${b})`;
}

/** Black or white, whichever is read better on a colour. */
export function inkOn([r, g, b]: Rgb): string {
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff";
}
