// One bundle a widget, into the Python package: `node build.mjs [--watch]`.
import { context, build } from "esbuild";
import { mkdirSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = `${here}../src/insitu/widgets/bundles`;
mkdirSync(out, { recursive: true });
const options = {
  entryPoints: readdirSync(`${here}src/widgets`).map((name) => `${here}src/widgets/${name}`),
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  logLevel: "warning",
};
if (process.argv.includes("--watch")) await (await context(options)).watch();
else await build(options);
