/** The modules of the sample as a host gives them: what is binary there is numbers in the file. */
import sample from "../samples/module_tree.json";
import { nodesOf, type SentNodes } from "../src/views/module_tree";

export const sent: SentNodes = {
  ...sample.nodes,
  numbers: new DataView(new Int32Array(sample.nodes.numbers).buffer),
  sizes: new DataView(new Float64Array(sample.nodes.sizes).buffer),
};
export const nodes = nodesOf(sent);
