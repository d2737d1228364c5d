import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { atomicFile, writeError, writeFileAtomic, writeFolderAtomic } from "./atomic-write.js";
import { ResourceError } from "./errors.js";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-atomic-"));
});
afterEach(async () => {
  await chmod(folder, 0o755);
  await rm(folder, { recursive: true });
});

describe("files", () => {
  it("appear on commit, in new folders too, and replace older ones", async () => {
    const path = join(folder, "sub", "x.txt");
    await writeFileAtomic(path, "one");
    const file = await atomicFile(path);
    await file.write(new TextEncoder().encode("two"));
    expect(await readFile(path, "utf8")).toBe("one");
    await file.commit();
    expect(await readFile(path, "utf8")).toBe("two");
    expect(await readdir(join(folder, "sub"))).toEqual(["x.txt"]);
  });
  it("leave nothing after abort", async () => {
    const file = await atomicFile(join(folder, "x"));
    await file.write(Uint8Array.of(1));
    await file.abort();
    expect(await readdir(folder)).toEqual([]);
  });
  it("old leftovers go, young ones stay", async () => {
    const stamp = (ms: number) => `.x.tmp-${(Date.now() - ms).toString(36)}-00`;
    const [old, young] = [stamp(48 * 3600e3), stamp(1000)];
    await writeFile(join(folder, old), "");
    await writeFile(join(folder, young), "");
    await writeFileAtomic(join(folder, "x"), "1");
    expect((await readdir(folder)).sort()).toEqual([young, "x"].sort());
  });
  it("a place that is no folder is a ResourceError", async () => {
    await writeFile(join(folder, "file"), "");
    await expect(writeFileAtomic(join(folder, "file", "x"), "1")).rejects.toThrow(ResourceError);
    expect(writeError("/a/x", { code: "ENOSPC" })).toMatchObject({ exitCode: 4, place: "x" });
  });
});

describe("folders", () => {
  it("replace an older one as a whole", async () => {
    const path = join(folder, "out");
    await mkdir(path);
    await writeFile(join(path, "old"), "");
    await writeFolderAtomic(path, (beside) => writeFile(join(beside, "new"), ""));
    expect(await readdir(path)).toEqual(["new"]);
    expect(await readdir(folder)).toEqual(["out"]);
  });
  it("keep the older one when filling fails", async () => {
    const path = join(folder, "out");
    await writeFolderAtomic(path, (beside) => writeFile(join(beside, "good"), ""));
    const failing = writeFolderAtomic(path, async () => {
      throw new Error("no");
    });
    await expect(failing).rejects.toThrow("no");
    expect(await readdir(path)).toEqual(["good"]);
    expect(await readdir(folder)).toEqual(["out"]);
  });
});
