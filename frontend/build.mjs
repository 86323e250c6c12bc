// Makes src/greylag/web/static: the style sheet, and the scripts of others with their licences.
// With --check it writes nothing and fails when the files are not what it would make.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const target = join(here, "..", "src", "greylag", "web", "static");

const vendored = [
  ["htmx.org/dist/htmx.min.js", "htmx.min.js"],
  ["htmx.org/LICENSE", "htmx.LICENSE"],
  ["idiomorph/dist/idiomorph.min.js", "idiomorph.min.js"],
  ["idiomorph/LICENSE", "idiomorph.LICENSE"],
];

function styleSheet() {
  const folder = mkdtempSync(join(tmpdir(), "greylag-css-"));
  try {
    const made = join(folder, "app.css");
    const tailwind = join(modules, "@tailwindcss", "cli", "dist", "index.mjs");
    const command = [tailwind, "-i", join(here, "app.css"), "-o", made, "--minify"];
    execFileSync(process.execPath, command, { cwd: here, stdio: ["ignore", "ignore", "inherit"] });
    return readFileSync(made);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function version(name) {
  return JSON.parse(readFileSync(join(modules, name, "package.json"), "utf8")).version;
}

function allFiles() {
  const files = new Map([["app.css", styleSheet()]]);
  for (const [from, to] of vendored) files.set(join("vendor", to), readFileSync(join(modules, from)));
  const versions = ["htmx.org", "idiomorph"].map((name) => `${name} ${version(name)}\n`).join("");
  files.set(join("vendor", "VERSIONS"), Buffer.from(versions));
  return files;
}

function differing(files) {
  const same = (name) => existsSync(join(target, name)) && readFileSync(join(target, name)).equals(files.get(name));
  const known = new Set([...files.keys()]);
  const strangers = readdirSync(join(target, "vendor")).map((name) => join("vendor", name)).filter((name) => !known.has(name));
  return [...[...files.keys()].filter((name) => !same(name)), ...strangers];
}

const files = allFiles();
if (process.argv.includes("--check")) {
  const wrong = differing(files);
  if (wrong.length > 0) {
    console.error(`not what "npm run build" makes: ${wrong.join(", ")}`);
    process.exit(1);
  }
  console.log(`${files.size} files are what the build makes`);
} else {
  mkdirSync(join(target, "vendor"), { recursive: true });
  for (const [name, content] of files) writeFileSync(join(target, name), content);
  console.log(`${files.size} files written`);
}
