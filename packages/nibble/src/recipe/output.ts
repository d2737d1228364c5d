/** Where an artifact may be written: nowhere that would cost the user something else. */
import { readdir } from "node:fs/promises";
import { UsageError } from "../core/errors.js";

/**
 * An artifact replaces the folder it is saved to, so that folder must be missing, empty, or an artifact itself.
 * @throws UsageError otherwise
 */
export async function checkOutput(path: string): Promise<void> {
  let names: string[];
  try {
    names = await readdir(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return;
    if (code === "ENOTDIR") {
      throw new UsageError("is a file, not a folder", { place: path, hint: "Choose another -o." });
    }
    throw error;
  }
  if (names.length === 0 || names.includes("nibble.json")) return;
  throw new UsageError("the output folder holds other files", {
    place: path,
    hint: "Choose a new folder with -o; only an earlier artifact is replaced.",
  });
}
