/** Numbers of a sample as a host gives them: in its file, what is no number is a word. */
export const numbers = (given: (number | string)[]): number[] => given.map((it) => (it === "inf" ? Infinity : it === "-inf" ? -Infinity : Number(it)));
export const bytes = (given: number[]): DataView => new DataView(new Float32Array(given).buffer);
