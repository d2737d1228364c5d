/** Folders that nibble keeps between runs. Node only. */
import { homedir } from "node:os";
import { join, resolve } from "node:path";

/** `NIBBLE_HOME`, default `~/.cache/nibble`: resume state, prepared artifacts, fetched models. */
export function nibbleHome(
  env: Readonly<Record<string, string | undefined>> = process.env,
): string {
  const set = env.NIBBLE_HOME;
  return set ? resolve(set) : join(homedir(), ".cache", "nibble");
}
