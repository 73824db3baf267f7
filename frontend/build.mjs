// Builds the page: one script and one style sheet, which src/regard/figures/ keeps so that installing needs no node.
import { readFileSync, writeFileSync } from "node:fs";
import { build, transform } from "esbuild";
import { fileURLToPath } from "node:url";

const target = process.argv[2] ?? fileURLToPath(new URL("../src/regard/figures/", import.meta.url));
const styles = { // as a text without spaces and comments
  name: "styles",
  setup: ({ onLoad }) => onLoad({ filter: /\.css$/ }, async ({ path }) => {
    const { code } = await transform(readFileSync(path, "utf8"), { loader: "css", minify: true });
    return { contents: code.trim(), loader: "text" };
  }),
};
const common = {
  bundle: true, minify: true, format: "esm", target: "es2022", write: false, legalComments: "none", charset: "utf8",
  tsconfigRaw: { compilerOptions: { jsx: "react", jsxFactory: "createElement", jsxFragmentFactory: "Fragment" } }, plugins: [styles],
  absWorkingDir: fileURLToPath(new URL(".", import.meta.url)),
};
const worker = await build({ ...common, entryPoints: ["src/worker.ts"], format: "iife" });
const page = await build({
  ...common, entryPoints: ["src/main.tsx"], inject: ["src/jsx.ts"], define: { WORKER: JSON.stringify(worker.outputFiles[0].text) },
});
const script = page.outputFiles[0].text;
if (/<\/script/i.test(script) || /<!--/.test(script)) throw new Error("the script cannot stand inside a page");
writeFileSync(`${target}/look.mjs`, script);
const budget = 150_000;
console.log(`look.mjs: ${script.length.toLocaleString("en")} bytes of ${budget.toLocaleString("en")}`);
if (script.length > budget) process.exit(1);
