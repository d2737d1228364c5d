/**
 * The weights of a model in an arena: everything that lowering needs to know about them, as plain data, so that a later
 * process can take both the data and the bytes from a file (runtime/prepared.ts) in place of reading and packing.
 */
import { dropGarbage } from "../core/memory.js";
import type { Arena } from "../graph/arena.js";
import type { Engine } from "../kernels/contract.js";
import { ProgramBuilder } from "../kernels/program.js";
import type { PlacedBlock } from "./lower.js";
import type { Model } from "./model.js";
import {
  type PlacedEdges,
  type PlacedEmbedding,
  placeEdges,
  placeEmbedding,
  placeLayer,
  placeSites,
} from "./place-model.js";

/** Survives JSON. Lines are those of the arena it was made in. */
export interface Placement {
  /** Lines [from, to) hold all weights. */
  from: number;
  to: number;
  /** Words of the weight descriptors. */
  descriptors: readonly (readonly number[])[];
  embedding: PlacedEmbedding;
  embeddingBytes: number;
  blocks: PlacedBlock[];
  /** Where each layer begins, and where the last one ends. */
  marks: number[];
  edges: PlacedEdges;
}

/** Placements that earlier processes left, with their bytes. */
export interface PreparedWeights {
  /** Puts the bytes in place from line `from` on; null when there are none of this model. */
  take(engine: Engine, from: number): Promise<Placement | null>;
  /** A model has been placed: keeps it for later. */
  offer(engine: Engine, placement: Placement): void;
  /** What was offered is about to change: it is not kept any more. */
  withdraw(): void;
}

export interface PlacementOptions {
  onLayer?: (layer: number, layers: number) => void;
  signal?: AbortSignal;
}

/** Placed bytes after which what was read for them is given back. */
const COLLECT_BYTES = 32 * 2 ** 20;

/** Reads, packs and places every weight, tensor by tensor: never two copies of more than one layer's projections. */
export async function placeModel(
  arena: Arena,
  model: Model,
  options: PlacementOptions,
): Promise<Placement> {
  const { config } = model;
  const builder = new ProgramBuilder();
  const from = arena.mark();
  let collected = arena.usedBytes;
  const embedding = await placeEmbedding(arena, builder, model);
  const embeddingBytes = arena.usedBytes - collected;
  const collect = async () => {
    if (arena.usedBytes - collected < COLLECT_BYTES) return;
    if (model.dropPages) model.dropPages();
    else await dropGarbage();
    collected = arena.usedBytes;
  };
  await collect();
  const blocks: PlacedBlock[] = [];
  const sites = placeSites(arena, model);
  const marks = [arena.mark()];
  for (let layer = 0; layer < config.numHiddenLayers; layer++) {
    options.signal?.throwIfAborted();
    blocks.push(await placeLayer(arena, builder, model, layer, layer, sites(layer)));
    marks.push(arena.mark());
    await collect();
    options.onLayer?.(layer, config.numHiddenLayers);
  }
  const edges = await placeEdges(arena, builder, model);
  model.dropPages?.();
  return {
    from,
    to: arena.mark(),
    descriptors: builder.weights,
    embedding,
    embeddingBytes,
    blocks,
    marks,
    edges,
  };
}
