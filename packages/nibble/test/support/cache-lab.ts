/** Small managed caches with random rows, for tests of streams, codecs and policies. */
import { Philox } from "../../src/core/rng.js";
import { kvCodecs } from "../../src/kv/codecs/index.js";
import type { PlaneName } from "../../src/kv/contract.js";
import { completeKv, type ResolvedKv } from "../../src/kv/recipe.js";
import { DenseAttender } from "../../src/kv/streams/attender.js";
import type { RopeTable } from "../../src/kv/streams/frame.js";
import type { LayerRows, StepMode } from "../../src/kv/streams/layer.js";
import { type Calibration, ManagedCache } from "../../src/kv/streams/managed.js";
import type { KvRecipe } from "../../src/model/model.js";
import type { CalibrationSamples } from "../../src/observers/kv-samples.js";

export interface LabShape {
  headDim: number;
  kvHeads: number;
  groupHeads: number;
  sequences?: number;
  positions?: number;
  /** No rotation: for oracles that know none. */
  still?: boolean;
  tile?: number;
  window?: number | null;
}

export function ropeOf(headDim: number, positions: number, still = false): RopeTable {
  const half = headDim / 2;
  const table = (f: (x: number) => number) =>
    Float32Array.from({ length: positions * half }, (_, i) =>
      f(still ? 0 : Math.floor(i / half) * 10 ** (-3 * ((i % half) / half))),
    );
  return { cos: table(Math.cos), sin: table(Math.sin), half };
}

/** Calibration of a codec on random rows; codecs without calibration get an empty map. */
function calibrationOf(kv: ResolvedKv, shape: LabShape): Calibration {
  const { headDim, kvHeads } = shape;
  const rows = 64;
  const rng = new Philox(5, "calibration");
  const width = kvHeads * headDim;
  const draw = (n: number) => Float32Array.from(rng.normals(n));
  const samples: CalibrationSamples = {
    kvHeads,
    headDim,
    rows,
    keys: draw(rows * width),
    values: draw(rows * width),
    positions: Int32Array.from({ length: rows }, (_, i) => i),
    attention: new Float64Array(rows * kvHeads).fill(1),
    queries: new Float64Array(width).fill(1),
    queryNorm: new Float32Array(kvHeads).fill(headDim),
  };
  const planes: PlaneName[] = ["k", "v"];
  const tensors = planes.flatMap((plane) => {
    const { codec, ...options } = kv[plane];
    return kvCodecs.get(codec).calibrate?.(options, plane, samples) ?? [];
  });
  return (_, kvHead) =>
    new Map(
      tensors.map(({ name, shape: dims, data }) => {
        const size = dims.at(-1) as number;
        const own = dims.length > 1 ? data.slice(kvHead * size, (kvHead + 1) * size) : data;
        return [name, own];
      }),
    );
}

/** Rows that were drawn before, by shape, name and position: every test asks for the same ones. */
const drawn = new Map<string, { q: Float32Array; k: Float32Array; v: Float32Array }>();

export class CacheLab {
  readonly cache: ManagedCache;
  readonly attender: DenseAttender;
  readonly rope: RopeTable;
  readonly kv: ResolvedKv;
  readonly shape: LabShape;

  constructor(recipe: KvRecipe, shape: LabShape, attender?: DenseAttender) {
    const { headDim, kvHeads, groupHeads } = shape;
    this.shape = shape;
    this.kv = completeKv(recipe);
    this.rope = ropeOf(headDim, shape.positions ?? 600, shape.still);
    const heads = kvHeads * groupHeads;
    this.attender =
      attender ??
      new DenseAttender({ maxRows: 256, heads, kvHeads, headDim, slots: shape.tile ?? 48 });
    const config = {
      numHiddenLayers: 1,
      numAttentionHeads: heads,
      numKeyValueHeads: kvHeads,
      headDim,
      slidingWindow: [shape.window ?? null],
    };
    const calibration = calibrationOf(this.kv, shape);
    this.cache = new ManagedCache(this.kv, config, this.rope, shape.sequences ?? 3, calibration);
  }

  /** Random rows that follow what the sequence has seen; the same for the same name and position. */
  rows(count: number, from: number, name = "rows", scale = 1): LayerRows {
    const { headDim, kvHeads, groupHeads } = this.shape;
    const width = kvHeads * headDim;
    const all = Array.from({ length: count }, (_, i) => {
      const key = `${name}/${from + i}/${width}/${groupHeads}/${scale}`;
      const known = drawn.get(key);
      if (known) return known;
      const rng = new Philox(3, `${name}/${from + i}`);
      const draw = (n: number) => Float32Array.from(rng.normals(n), (x) => x * scale);
      const row = { q: draw(width * groupHeads), k: draw(width), v: draw(width) };
      drawn.set(key, row);
      return row;
    });
    const join = (part: "q" | "k" | "v") => {
      const size = all[0]?.[part].length ?? 0;
      const joined = new Float32Array(count * size);
      for (const [i, row] of all.entries()) joined.set(row[part], i * size);
      return joined;
    };
    return {
      rows: count,
      queries: join("q"),
      keys: join("k"),
      values: join("v"),
      positions: Int32Array.from({ length: count }, (_, i) => from + i),
    };
  }

  async step(
    input: LayerRows,
    mode: StepMode = { kind: "stepwise" },
    { sequence = 0, promptLength = 1 }: { sequence?: number; promptLength?: number } = {},
  ): Promise<Float32Array> {
    const { headDim, kvHeads, groupHeads } = this.shape;
    const out = new Float32Array(input.rows * kvHeads * groupHeads * headDim);
    const layer = this.layer(sequence);
    await layer.step(input, { mode, promptLength }, this.attender, out);
    for (const stream of layer.streams) stream.check();
    return out;
  }

  layer(sequence = 0) {
    const [layer] = this.cache.layers(sequence);
    if (!layer) throw new Error("no layer");
    return layer;
  }

  /** Everything attention would read of a sequence: decoded keys (as stored), values and positions, per stream. */
  contents(sequence = 0) {
    const { headDim, kvHeads, groupHeads } = this.shape;
    return this.layer(sequence).streams.map((stream) => {
      const heads = kvHeads * groupHeads;
      const slots = Math.max(1, stream.length);
      const room = new DenseAttender({ maxRows: 1, heads, kvHeads, headDim, slots });
      const every = Int32Array.of(stream.length);
      stream.fill(
        {
          from: 0,
          to: stream.length,
          lows: Int32Array.of(0),
          highs: every,
          exactKeys: false,
          exactValues: false,
          offset: null,
        },
        1,
        room,
      );
      const positions = Array.from({ length: stream.length }, (_, slot) => stream.position(slot));
      return {
        positions,
        keys: room.keys,
        values: room.values,
        sealed: [stream.k.sealed, stream.v.sealed],
      };
    });
  }
}
