import { describe, expect, it } from "vitest";
import { BackendError } from "../core/errors.js";
import type { Backend, BackendId } from "./contract.js";
import { referenceBackend } from "./reference.js";
import { backendStatuses, selectBackend } from "./select.js";

/** Backends by name; those in `broken` are not available, those in `missing` do not load. */
function backends(broken: BackendId[], missing: BackendId[] = []) {
  return async (id: BackendId): Promise<Backend> => {
    if (missing.includes(id)) throw new BackendError(`${id} was not built`);
    const available = !broken.includes(id);
    const notices = available ? [] : [`${id} gave wrong results`];
    return {
      id,
      status: async () => ({ id, variant: available ? "test" : null, available, notices }),
      createEngine: referenceBackend.createEngine,
    };
  };
}

async function select(choice: "auto" | BackendId, broken: BackendId[], missing?: BackendId[]) {
  const lines: string[] = [];
  const backend = await selectBackend(
    choice,
    (line) => lines.push(line),
    backends(broken, missing),
  );
  return { id: backend.id, lines };
}

describe("backend selection", () => {
  it("takes native first and says nothing", async () => {
    expect(await select("auto", [])).toEqual({ id: "native", lines: [] });
  });

  it("steps down with one line each", async () => {
    expect(await select("auto", ["wasm"], ["native"])).toEqual({
      id: "reference",
      lines: [
        "native backend not used: native was not built",
        "wasm backend not used: wasm gave wrong results",
      ],
    });
  });

  it("takes the backend that was named", async () => {
    expect(await select("wasm", ["native"])).toEqual({ id: "wasm", lines: [] });
    expect((await selectBackend("reference", () => {})).id).toBe("reference");
  });

  it("refuses a named backend that cannot run, with the reason", async () => {
    await expect(select("native", ["native"])).rejects.toThrow(/native gave wrong results/);
    await expect(select("wasm", [], ["wasm"])).rejects.toBeInstanceOf(BackendError);
  });

  it("reports every backend, and modules that do not load", async () => {
    const statuses = await backendStatuses(backends(["wasm"], ["native"]));
    expect(statuses.map(({ id, available, notices }) => [id, available, notices[0]])).toEqual([
      ["native", false, "native was not built"],
      ["wasm", false, "wasm gave wrong results"],
      ["reference", true, undefined],
    ]);
  });
});
