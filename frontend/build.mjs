// Makes src/greylag/web/static: the style sheet and the scripts, with the licences of what is in them.
// With --check it writes nothing and fails when the files are not what it would make.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const target = join(here, "..", "src", "greylag", "web", "static");
const packages = "node_modules/";

function run(program, ...given) {
  execFileSync(process.execPath, [join(modules, program), ...given], { cwd: here, stdio: ["ignore", "pipe", "inherit"] });
}

function styleSheet() {
  const folder = mkdtempSync(join(tmpdir(), "greylag-css-"));
  try {
    const made = join(folder, "app.css");
    run("@tailwindcss/cli/dist/index.mjs", "-i", join(here, "app.css"), "-o", made, "--minify");
    return readFileSync(made);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Return the scripts by name, and the licences of the packages that are in them. */
async function scripts() {
  const common = {
    absWorkingDir: here, bundle: true, write: false, metafile: true, minify: true, charset: "utf8", target: "es2022",
    outdir: join(target, "js"), legalComments: "none", loader: { ".css": "text" }, jsx: "automatic", jsxImportSource: "preact",
  };
  const pages = { entryPoints: ["src/app.ts", "src/sign_in.ts"], format: "esm", splitting: true, chunkNames: "[name]-[hash]", plugins: [sharing] };
  const head = { entryPoints: ["src/theme.ts", "src/service_worker.ts", "src/highlight_worker.ts"], format: "iife" };
  const results = await Promise.all([build({ ...common, ...pages }), build({ ...common, ...head })]);
  const files = results.flatMap(({ outputFiles }) => outputFiles);
  const inputs = results.flatMap(({ metafile }) => Object.keys(metafile.inputs));
  const named = files.map(({ path, text }) => [path.slice(target.length + 1), text]);
  return [...joined(named).map(([name, text]) => [name, Buffer.from(text)]), ["js/LICENSES", licences(inputs)]];
}

// What is loaded later imports the page's script, so that the bundler puts all that they share into one file.
const sharing = {
  name: "sharing",
  setup({ onResolve, onLoad, resolve }) {
    onResolve({ filter: /^\.\// }, async ({ path, kind, resolveDir, pluginData }) => {
      if (kind !== "dynamic-import" || pluginData === sharing) return null;
      return { ...(await resolve(path, { kind, resolveDir, pluginData: sharing })), pluginData: "later" };
    });
    onLoad({ filter: /\.tsx?$/ }, ({ path, pluginData }) => {
      if (pluginData !== "later") return null;
      return { contents: `import "./app";\n${readFileSync(path, "utf8")}`, loader: path.endsWith("x") ? "tsx" : "ts" };
    });
  },
};

/** Return the scripts with that file in the place of the one that only imports it: a page then asks for one. */
function joined(scripts) {
  const [, shared] = new Map(scripts).get("js/app.js").match(/^import"\.\/(chunk-\w+\.js)";\s*$/);
  return scripts.filter(([name]) => name !== "js/app.js").map(([name, text]) => [
    name === `js/${shared}` ? "js/app.js" : name, text.replaceAll(`"./${shared}"`, '"./app.js"'),
  ]);
}

function licences(inputs) {
  const names = inputs.filter((input) => input.startsWith(packages)).map((input) => {
    const parts = input.slice(packages.length).split("/");
    return parts[0].startsWith("@") ? parts.slice(0, 2).join("/") : parts[0];
  });
  const texts = [...new Set(names)].sort().map((name) => {
    const { version, license } = JSON.parse(readFileSync(join(modules, name, "package.json"), "utf8"));
    const file = readdirSync(join(modules, name)).find((one) => /^licen[cs]e/i.test(one));
    const text = file ? readFileSync(join(modules, name, file), "utf8").trim() : `Licensed under ${license}.`;
    return `${name} ${version}\n\n${text}\n`;
  });
  return Buffer.from(texts.join(`\n${"-".repeat(79)}\n\n`));
}

function present() {
  return readdirSync(join(target, "js")).map((name) => join("js", name));
}

function differing(files) {
  const same = (name) => existsSync(join(target, name)) && readFileSync(join(target, name)).equals(files.get(name));
  const strangers = present().filter((name) => !files.has(name.replaceAll(sep, "/")));
  return [...[...files.keys()].filter((name) => !same(name)), ...strangers];
}

run("typescript/bin/tsc", "--project", here);
const files = new Map([["app.css", styleSheet()], ...(await scripts())]);
if (process.argv.includes("--check")) {
  const wrong = differing(files);
  if (wrong.length > 0) {
    console.error(`not what "npm run build" makes: ${wrong.join(", ")}`);
    process.exit(1);
  }
  console.log(`${files.size} files are what the build makes`);
} else {
  rmSync(join(target, "js"), { recursive: true, force: true });
  mkdirSync(join(target, "js"));
  for (const [name, content] of files) writeFileSync(join(target, name), content);
  console.log(`${files.size} files written`);
}
