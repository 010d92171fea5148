// Runs the cases of the modules that are named as arguments, and writes one JSON line on standard output for each:
// {client, version, case, outcome, reason, seconds}. The addresses come from the environment.
import { readFileSync } from "node:fs";

const LONGEST_CASE = 30_000;

function versionOf(name) {
  return JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
}

async function outcomeOf(check) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no end within ${LONGEST_CASE / 1000} s`)), LONGEST_CASE);
  });
  try {
    await Promise.race([check(), late]);
    return { outcome: "passed", reason: "" };
  } catch (error) {
    return { outcome: "failed", reason: error?.stack ?? String(error) };
  } finally {
    clearTimeout(timer);
  }
}

for (const name of process.argv.slice(2)) {
  const { client, checks, close } = await import(`./${name}.mjs`);
  for (const [title, check] of Object.entries(checks)) {
    const started = performance.now();
    const result = await outcomeOf(check);
    const seconds = (performance.now() - started) / 1000;
    console.log(JSON.stringify({ client, version: versionOf(client), case: title, ...result, seconds }));
  }
  await close?.();
}
process.exit(0);
