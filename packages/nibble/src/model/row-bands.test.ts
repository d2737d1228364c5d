import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { quarot } from "../methods/quarot.js";
import { loadModel } from "../runtime/load-model.js";
import type { LazyTensor } from "./model.js";
import { rowBands } from "./row-bands.js";

async function whole(tensor: LazyTensor, elements: number): Promise<[number, number[]]> {
  const values: number[] = [];
  let bands = 0;
  const k = tensor.shape[1] as number;
  for await (const band of rowBands(tensor, elements)) {
    expect(band.from).toBe(values.length / k);
    values.push(...band.values);
    bands++;
  }
  return [bands, values];
}

it("bands of a table, folded or not, are the table; what mixes rows is read whole", async () => {
  const model = await loadModel(
    fileURLToPath(new URL("../../test/golden/models/llama-tied", import.meta.url)),
  );
  const dense = (path: string) => {
    const weight = model.parameters.get(path)?.weight;
    if (!weight || "quant" in weight) throw new Error(path);
    return weight;
  };
  for (const rotated of [false, true]) {
    if (rotated) {
      const context = { rng: new Philox(0, "t"), log() {} };
      await quarot.apply(model, quarot.options.parse({}), context);
    }
    const embed = dense("embed");
    const k = embed.shape[1] as number;
    const [bands, values] = await whole(embed, 5 * k + 1);
    expect(bands).toBe(Math.ceil((embed.shape[0] as number) / 5));
    expect(values).toEqual([...(await embed.read())]);
    // Outputs of o and down are rotated: a row of them needs all rows.
    const [parts, down] = await whole(dense("layers.0.down"), 64);
    expect(parts === 1).toBe(rotated);
    expect(down).toEqual([...(await dense("layers.0.down").read())]);
  }
  await model.close();
});
