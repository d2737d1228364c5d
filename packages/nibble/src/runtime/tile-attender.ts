/** Attention over decoded tiles on the engine of a model that was compiled for a managed cache. */
import type { TileAttender } from "../kv/streams/attender.js";
import type { CompiledModel, LayerPrograms } from "../model/compile.js";
import { REGISTER } from "../model/lower.js";
import { runProgram } from "./run-program.js";

export class EngineAttender implements TileAttender {
  readonly maxRows: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly slots: number;
  readonly queries: Float32Array;
  readonly keys: Float32Array;
  readonly values: Float32Array;
  readonly ranges: Int32Array;
  readonly state: Float32Array;
  readonly logits: Float32Array;
  readonly #model: CompiledModel;
  readonly #tile: LayerPrograms["tile"];

  constructor(model: CompiledModel, { tile }: LayerPrograms) {
    const { arena, config, maxRows } = model;
    this.#model = model;
    this.#tile = tile;
    this.maxRows = maxRows;
    this.heads = config.numAttentionHeads;
    this.kvHeads = config.numKeyValueHeads;
    this.headDim = config.headDim;
    this.slots = tile.slots;
    const { heads, kvHeads, headDim, slots } = this;
    this.queries = arena.f32(tile.queryAt, maxRows * heads * headDim);
    this.keys = arena.f32(tile.keysAt, kvHeads * slots * headDim);
    this.values = arena.f32(tile.valuesAt, kvHeads * slots * headDim);
    this.ranges = arena.i32(tile.rangesAt, maxRows * kvHeads * 2);
    this.state = arena.f32(tile.stateAt, maxRows * heads * (headDim + 2));
    this.logits = arena.f32(tile.logitsAt, maxRows * heads * slots);
  }

  run(rows: number, logits: boolean): void | Promise<void> {
    const { registers, engine } = this.#model;
    registers[REGISTER.rows] = rows;
    return runProgram(engine, logits ? this.#tile.withLogits : this.#tile.plain, rows);
  }
}
