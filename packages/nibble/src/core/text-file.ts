/** Texts to measure and calibrate with. Node only. */
import { readFile } from "node:fs/promises";
import { FormatError, ModelError } from "./errors.js";

/**
 * A text file as Python's `open(path).read()` gives it: UTF-8 with universal newlines (\r\n and \r become \n). Every
 * reference implementation of the perplexity protocol reads its text that way, and the newlines are tokens.
 * @throws ModelError when the file cannot be read, FormatError when it is not UTF-8 (both exit code 3)
 */
export async function readTextFile(path: string): Promise<string> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code ?? "unreadable";
    throw new ModelError(
      `the text file cannot be read (${code})`,
      { place: path, hint: "Check the path.", cause },
      "data-missing",
    );
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes).replace(/\r\n?/g, "\n");
  } catch (cause) {
    const hint = "Convert it to UTF-8.";
    throw new FormatError("the file is not UTF-8 text", { place: path, hint, cause });
  }
}
