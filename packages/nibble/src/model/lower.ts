/**
 * Lowers one decoder block to instructions of the flat program. The same function serves inference (integer linears,
 * packed cache), calibration (dense weights, observers on every site) and any number of rows; what differs is declared by
 * the placed weights and the site recipes it is given.
 */
import { ModelError } from "../core/errors.js";
import { codeStride } from "../graph/arena.js";
import { EPILOGUE } from "../kernels/ops.js";
import type { Operands, ProgramBuilder } from "../kernels/program.js";
import type { ModelConfig } from "./config.js";
import type { ActivationQuantizer } from "./model.js";
import type { Site } from "./roles.js";

/** Registers of every compiled program. */
export const REGISTER = { rows: 0, logitRows: 1, statRows: 2, klRows: 3, expertRows: 16 } as const;

/** A weight (or several fused along the output) in the arena. */
export interface PlacedLinear {
  /** Index of the descriptor. */
  weight: number;
  n: number;
  k: number;
  /** True when linearInt can run it. */
  integer: boolean;
  /** Columns of a weight group, 0 = one group a row. */
  groupSize: number;
  interleaved: boolean;
  permAt: number;
  preScaleAt: number;
  /** Purely additive side-cars, added after the main term. */
  csr: { rowPointersAt: number; columnsAt: number; valuesAt: number } | null;
  /** Pairs of dense descriptors: y += b (a x). */
  lowRank: { a: number; b: number; rank: number }[];
}

/** A linear and where its output goes. */
export interface LinearOutput {
  linear: PlacedLinear;
  dstAt: number;
  ldDst: number;
  epilogue: number;
}

/** Online transform of a site, placed. */
export type PlacedTransform =
  | {
      op: "hadamard";
      blocks: number;
      orderK: number;
      orderM: number;
      inner: number;
      matrixAt: number;
      norm: number;
    }
  | { op: "mixHeads"; count: number; inner: number; matrixAt: number };

export interface SiteRecipe {
  transforms: PlacedTransform[];
  quantizer: ActivationQuantizer | null;
}

/** Activation buffers, lines and strides; sized for `maxRows`. */
export interface Buffers {
  maxRows: number;
  residualAt: number;
  /** f32 scratch rows of `wide` channels: normed input, transformed input, gathered experts. */
  normedAt: number;
  transformedAt: number;
  wide: number;
  qkvAt: number;
  ldQkv: number;
  attentionAt: number;
  ldAttention: number;
  gateAt: number;
  upAt: number;
  middleAt: number;
  ldMiddle: number;
  codesAt: number;
  scaleAt: number;
  sumAt: number;
  zeroAt: number;
  queryAt: number;
  queryScaleAt: number;
  querySumAt: number;
  partsAt: number;
  partsLines: number;
  positionsAt: number;
  sequencesAt: number;
  cosAt: number;
  sinAt: number;
  rankAt: number;
  ldRank: number;
  moe: {
    /** The normed input that all experts gather from. */
    inputAt: number;
    logitsAt: number;
    indexAt: number;
    weightAt: number;
    gatheredAt: number;
    outputAt: number;
  } | null;
}

export interface PlacedMlp {
  /** Fused and interleaved gate|up, or the two apart. */
  gateUp: PlacedLinear | { gate: PlacedLinear; up: PlacedLinear };
  down: PlacedLinear;
}

export interface PlacedBlock {
  /** Layer index inside the cache. */
  cacheLayer: number;
  slidingWindow: number | null;
  inputNormAt: number;
  postNormAt: number;
  queryGainAt: number;
  keyGainAt: number;
  /** One fused matrix, or [q, k, v]. */
  qkv: PlacedLinear[];
  o: PlacedLinear;
  mlp: PlacedMlp | { router: PlacedLinear; experts: PlacedMlp[]; perToken: number };
  sites: Record<Site, SiteRecipe>;
}

/**
 * Called with the f32 input of a site (after its online transforms, before its quantizer). A lowering that observes leaves
 * out what only the block's result needs, the last linear, unless `keepsResult`.
 */
export type Observe = (
  site: Site,
  expert: number | null,
  operands: { rowsReg: number; srcAt: number; ldSrc: number; width: number },
) => void;

/** Mantissa bits, smallest normal exponent and largest value of the 8-bit floats. */
const SMALL_FLOATS = {
  e4m3: { mantissa: 3, minExponent: -6, largestF: 448 },
  e5m2: { mantissa: 2, minExponent: -14, largestF: 57344 },
} as const;

type Source =
  | { kind: "plain"; at: number; ld: number; width: number }
  | { kind: "norm"; at: number; ld: number; width: number; gainAt: number };

export class BlockLowering {
  readonly #builder: ProgramBuilder;
  readonly #config: ModelConfig;
  readonly #buffers: Buffers;
  readonly #cache: number;
  readonly #observe: Observe | null;
  readonly #keepsResult: boolean;

  constructor(
    builder: ProgramBuilder,
    config: ModelConfig,
    buffers: Buffers,
    cache: number,
    observe: Observe | null = null,
    keepsResult = observe === null,
  ) {
    this.#builder = builder;
    this.#config = config;
    this.#buffers = buffers;
    this.#cache = cache;
    this.#observe = observe;
    this.#keepsResult = keepsResult;
  }

  /** Residual in, residual out (in place at residualAt). */
  block(block: PlacedBlock): void {
    this.blockInput(block);
    this.#attention(block);
    this.blockOutput(block);
  }

  /** The part of a block in front of its cache: residual in, q, k and v (before norms and RoPE) at qkvAt out. */
  blockInput(block: PlacedBlock): void {
    const { hiddenSize: d } = this.#config;
    const b = this.#buffers;
    const rowsReg = REGISTER.rows;
    let offset = 0;
    const qkv = block.qkv.map((linear) => {
      const output = this.#shift(b.qkvAt, offset, linear);
      offset += linear.n;
      return { linear, dstAt: output, ldDst: b.ldQkv, epilogue: EPILOGUE.store };
    });
    this.#site(
      "attn_in",
      null,
      rowsReg,
      block.sites.attn_in,
      {
        kind: "norm",
        at: b.residualAt,
        ld: d,
        width: d,
        gainAt: block.inputNormAt,
      },
      qkv,
    );
  }

  #attention(block: PlacedBlock): void {
    const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } = this.#config;
    const b = this.#buffers;
    const rowsReg = REGISTER.rows;
    this.#builder.emit("appendKv", {
      rowsReg,
      qkvAt: b.qkvAt,
      ldQkv: b.ldQkv,
      positionsAt: b.positionsAt,
      sequencesAt: b.sequencesAt,
      cosAt: b.cosAt,
      sinAt: b.sinAt,
      heads,
      kvHeads,
      headDim,
      queryGainAt: block.queryGainAt,
      keyGainAt: block.keyGainAt,
      epsilonF: this.#config.rmsNormEps,
      cacheC: this.#cache,
      layer: block.cacheLayer,
      queryAt: b.queryAt,
      queryScaleAt: b.queryScaleAt,
      querySumAt: b.querySumAt,
    });
    this.#builder.emit("attention", {
      rowsReg,
      positionsAt: b.positionsAt,
      sequencesAt: b.sequencesAt,
      heads,
      kvHeads,
      headDim,
      cacheC: this.#cache,
      layer: block.cacheLayer,
      queryAt: b.queryAt,
      queryScaleAt: b.queryScaleAt,
      querySumAt: b.querySumAt,
      dstAt: b.attentionAt,
      ldDst: b.ldAttention,
      softmaxScaleF: 1 / Math.sqrt(headDim),
      slidingWindow: block.slidingWindow ?? 0,
      partsAt: b.partsAt,
      partsLines: b.partsLines,
    });
  }

  /** The part behind attention: its output at attentionAt and the residual in, residual out. */
  blockOutput(block: PlacedBlock): void {
    const { hiddenSize: d, numAttentionHeads: heads, headDim } = this.#config;
    const b = this.#buffers;
    const rowsReg = REGISTER.rows;
    this.#site(
      "attn_out",
      null,
      rowsReg,
      block.sites.attn_out,
      {
        kind: "plain",
        at: b.attentionAt,
        ld: b.ldAttention,
        width: heads * headDim,
      },
      [{ linear: block.o, dstAt: b.residualAt, ldDst: d, epilogue: EPILOGUE.add }],
    );

    const mlpSource: Source = {
      kind: "norm",
      at: b.residualAt,
      ld: d,
      width: d,
      gainAt: block.postNormAt,
    };
    if ("experts" in block.mlp) this.#experts(block, block.mlp, mlpSource);
    else this.#mlp(block.mlp, block.sites, mlpSource, rowsReg, null, b.residualAt, EPILOGUE.add);
  }

  #mlp(
    mlp: PlacedMlp,
    sites: Record<Site, SiteRecipe>,
    source: Source,
    rowsReg: number,
    expert: number | null,
    dstAt: number,
    epilogue: number,
  ): void {
    const b = this.#buffers;
    if ("weight" in mlp.gateUp) {
      this.#site("mlp_in", expert, rowsReg, sites.mlp_in, source, [
        { linear: mlp.gateUp, dstAt: b.middleAt, ldDst: b.ldMiddle, epilogue: EPILOGUE.swiglu },
      ]);
    } else {
      this.#site("mlp_in", expert, rowsReg, sites.mlp_in, source, [
        { linear: mlp.gateUp.gate, dstAt: b.gateAt, ldDst: b.ldMiddle, epilogue: EPILOGUE.store },
        { linear: mlp.gateUp.up, dstAt: b.upAt, ldDst: b.ldMiddle, epilogue: EPILOGUE.store },
      ]);
      this.#builder.emit("siluMul", {
        rowsReg,
        gateAt: b.gateAt,
        ldGate: b.ldMiddle,
        upAt: b.upAt,
        ldUp: b.ldMiddle,
        dstAt: b.middleAt,
        ldDst: b.ldMiddle,
        width: this.#config.intermediateSize,
      });
    }
    this.#site(
      "mlp_out",
      expert,
      rowsReg,
      sites.mlp_out,
      {
        kind: "plain",
        at: b.middleAt,
        ld: b.ldMiddle,
        width: this.#config.intermediateSize,
      },
      [{ linear: mlp.down, dstAt, ldDst: this.#config.hiddenSize, epilogue }],
    );
  }

  /** Router on the normed input; each expert runs on the rows routed to it, in expert order. */
  #experts(
    block: PlacedBlock,
    moe: { router: PlacedLinear; experts: PlacedMlp[]; perToken: number },
    source: Source,
  ): void {
    const b = this.#buffers;
    const d = this.#config.hiddenSize;
    if (!b.moe) throw new Error("buffers were planned without experts");
    const input = this.#materialize(source, REGISTER.rows, b.moe.inputAt);
    const count = moe.experts.length;
    this.#builder.emit("linearFloat", {
      rowsReg: REGISTER.rows,
      srcAt: input.at,
      ldSrc: input.ld,
      weightW: moe.router.weight,
      dstAt: b.moe.logitsAt,
      ldDst: count,
      epilogue: EPILOGUE.store,
    });
    this.#builder.emit("route", {
      rowsReg: REGISTER.rows,
      logitsAt: b.moe.logitsAt,
      ldLogits: count,
      experts: count,
      topK: moe.perToken,
      indexAt: b.moe.indexAt,
      weightAt: b.moe.weightAt,
      ldLists: listStride(b.maxRows),
      countReg: REGISTER.expertRows,
    });
    moe.experts.forEach((expert, e) => {
      const rowsReg = REGISTER.expertRows + e;
      const listLine = (e * listStride(b.maxRows) * 4) / 64;
      if (!b.moe) return;
      this.#builder.emit("gatherRows", {
        rowsReg,
        srcAt: input.at,
        ldSrc: input.ld,
        dstAt: b.moe.gatheredAt,
        ldDst: d,
        width: d,
        indexAt: b.moe.indexAt + listLine,
      });
      const gathered: Source = { kind: "plain", at: b.moe.gatheredAt, ld: d, width: d };
      this.#mlp(expert, block.sites, gathered, rowsReg, e, b.moe.outputAt, EPILOGUE.store);
      this.#builder.emit("scatterAddRows", {
        rowsReg,
        srcAt: b.moe.outputAt,
        ldSrc: d,
        dstAt: b.residualAt,
        ldDst: d,
        width: d,
        indexAt: b.moe.indexAt + listLine,
        weightAt: b.moe.weightAt + listLine,
      });
    });
  }

  /** One site: norm, online transforms, observer, quantizer, then every linear that reads it. */
  #site(
    site: Site,
    expert: number | null,
    rowsReg: number,
    recipe: SiteRecipe,
    source: Source,
    outputs: LinearOutput[],
  ): void {
    const { quantizer, transforms } = recipe;
    const plainPre = outputs.every((o) => o.linear.permAt < 0 && o.linear.preScaleAt < 0);
    const first = transforms[0];
    const fused =
      quantizer !== null &&
      quantizer.format === undefined &&
      this.#observe === null &&
      plainPre &&
      outputs.every((o) => o.linear.integer && !o.linear.csr && o.linear.lowRank.length === 0) &&
      (transforms.length === 0 ||
        (transforms.length === 1 && first?.op === "hadamard" && source.kind === "plain"));
    if (fused && quantizer) {
      for (const group of byGroupSize(outputs)) {
        this.#quantize(
          rowsReg,
          source,
          first?.op === "hadamard" ? first : null,
          quantizer,
          group.groupSize,
        );
        for (const output of group.outputs)
          this.#linearInt(rowsReg, source.width, quantizer, output);
      }
      return;
    }

    let input = this.#materialize(source, rowsReg, this.#buffers.normedAt);
    for (const transform of transforms) input = this.#transform(transform, input, rowsReg);
    this.#observe?.(site, expert, {
      rowsReg,
      srcAt: input.at,
      ldSrc: input.ld,
      width: input.width,
    });
    // The last linear of a block whose result nobody wants has nothing left to feed.
    if (!this.#keepsResult && site === "mlp_out") return;
    for (const output of outputs) this.#linear(rowsReg, input, quantizer, output);
  }

  /** One linear on an f32 input: its own pre-ops, quantizer, main term, side-cars. */
  #linear(
    rowsReg: number,
    input: Source,
    quantizer: ActivationQuantizer | null,
    output: LinearOutput,
  ): void {
    const { linear } = output;
    const b = this.#buffers;
    let from = input;
    if (linear.permAt >= 0 || linear.preScaleAt >= 0) {
      const at = input.at === b.transformedAt ? b.normedAt : b.transformedAt;
      this.#builder.emit("columns", {
        rowsReg,
        srcAt: input.at,
        ldSrc: input.ld,
        dstAt: at,
        ldDst: b.wide,
        width: input.width,
        permAt: linear.permAt,
        scaleAt: linear.preScaleAt,
      });
      from = { kind: "plain", at, ld: b.wide, width: input.width };
    }
    const sideCars = linear.csr !== null || linear.lowRank.length > 0;
    if (sideCars && output.epilogue === EPILOGUE.swiglu) {
      throw new Error(
        "a weight with side-cars cannot be fused with swiglu: place gate and up apart",
      );
    }
    if (quantizer && linear.integer && quantizer.format === undefined) {
      this.#quantize(rowsReg, from, null, quantizer, linear.groupSize);
      this.#linearInt(rowsReg, from.width, quantizer, output);
    } else {
      // In place where that is a copy of this linear alone: other linears read the input again.
      const own = from.at !== input.at;
      if (quantizer) from = this.#fakeQuantize(rowsReg, from, quantizer, own ? from.at : null);
      this.#builder.emit("linearFloat", {
        rowsReg,
        srcAt: from.at,
        ldSrc: from.ld,
        weightW: linear.weight,
        dstAt: output.dstAt,
        ldDst: output.ldDst,
        epilogue: output.epilogue,
      });
    }
    if (linear.csr) {
      this.#builder.emit("csr", {
        rowsReg,
        srcAt: from.at,
        ldSrc: from.ld,
        rowPointersAt: linear.csr.rowPointersAt,
        columnsAt: linear.csr.columnsAt,
        valuesAt: linear.csr.valuesAt,
        outputs: linear.n,
        dstAt: output.dstAt,
        ldDst: output.ldDst,
      });
    }
    for (const pair of linear.lowRank) {
      this.#builder.emit("linearFloat", {
        rowsReg,
        srcAt: from.at,
        ldSrc: from.ld,
        weightW: pair.a,
        dstAt: b.rankAt,
        ldDst: b.ldRank,
        epilogue: EPILOGUE.store,
      });
      this.#builder.emit("linearFloat", {
        rowsReg,
        srcAt: b.rankAt,
        ldSrc: b.ldRank,
        weightW: pair.b,
        dstAt: output.dstAt,
        ldDst: output.ldDst,
        epilogue: EPILOGUE.add,
      });
    }
  }

  #materialize(source: Source, rowsReg: number, at: number): Source {
    if (source.kind === "plain") return source;
    const b = this.#buffers;
    this.#builder.emit("rmsnorm", {
      rowsReg,
      srcAt: source.at,
      ldSrc: source.ld,
      dstAt: at,
      ldDst: b.wide,
      width: source.width,
      gainAt: source.gainAt,
      epsilonF: this.#config.rmsNormEps,
    });
    return { kind: "plain", at, ld: b.wide, width: source.width };
  }

  #transform(transform: PlacedTransform, input: Source, rowsReg: number): Source {
    const b = this.#buffers;
    const at = input.at === b.transformedAt ? b.normedAt : b.transformedAt;
    const common = { rowsReg, srcAt: input.at, ldSrc: input.ld, dstAt: at, ldDst: b.wide };
    if (transform.op === "mixHeads") {
      const { count, inner, matrixAt } = transform;
      this.#builder.emit("mixHeads", { ...common, count, inner, matrixAt });
    } else {
      this.#builder.emit("hadamard", { ...common, ...hadamardOperands(transform) });
    }
    return { kind: "plain", at, ld: b.wide, width: input.width };
  }

  #quantize(
    rowsReg: number,
    source: Source,
    hadamard: Extract<PlacedTransform, { op: "hadamard" }> | null,
    quantizer: ActivationQuantizer,
    weightGroupSize: number,
  ): void {
    const b = this.#buffers;
    const perToken = quantizer.granularity === "token";
    if (!perToken && quantizer.granularity !== weightGroupSize) {
      throw new ModelError(
        `activation groups of ${quantizer.granularity} meet weight groups of ${weightGroupSize || "one row"}`,
        { hint: "use the same groupSize for weights and activations, or granularity: token" },
      );
    }
    const common = {
      rowsReg,
      srcAt: source.at,
      ldSrc: source.ld,
      width: source.width,
      codesAt: b.codesAt,
      ldCodes: codeStride(source.width),
      scaleAt: b.scaleAt,
      sumAt: b.sumAt,
      zeroAt: quantizer.symmetric ? -1 : b.zeroAt,
      bits: quantizer.bits,
      symmetric: (quantizer.symmetric ? 1 : 0) + (perToken && weightGroupSize > 0 ? 2 : 0),
      groupSize: weightGroupSize,
      clipF: quantizer.clip,
    };
    if (hadamard)
      this.#builder.emit("hadamardQuantize", { ...common, ...hadamardOperands(hadamard) });
    else if (source.kind === "norm") {
      this.#builder.emit("rmsnormQuantize", {
        ...common,
        gainAt: source.gainAt,
        epsilonF: this.#config.rmsNormEps,
      });
    } else this.#builder.emit("quantize", common);
  }

  #linearInt(
    rowsReg: number,
    width: number,
    quantizer: ActivationQuantizer,
    output: LinearOutput,
  ): void {
    const b = this.#buffers;
    const { linear } = output;
    this.#builder.emit("linearInt", {
      rowsReg,
      codesAt: b.codesAt,
      ldCodes: codeStride(width),
      scaleAt: b.scaleAt,
      sumAt: b.sumAt,
      zeroAt: quantizer.symmetric ? -1 : b.zeroAt,
      activationGroups:
        quantizer.granularity === "token" || linear.groupSize === 0
          ? 1
          : Math.ceil(width / linear.groupSize),
      weightW: linear.weight,
      dstAt: output.dstAt,
      ldDst: output.ldDst,
      epilogue: output.epilogue,
    });
  }

  /** Quantized and read back: what a dense weight sees of a quantized site. */
  #fakeQuantize(
    rowsReg: number,
    source: Source,
    quantizer: ActivationQuantizer,
    place: number | null,
  ): Source {
    const b = this.#buffers;
    const at = place ?? (source.at === b.transformedAt ? b.normedAt : b.transformedAt);
    if (quantizer.format) {
      this.#builder.emit("roundFloat", {
        rowsReg,
        srcAt: source.at,
        ldSrc: source.ld,
        width: source.width,
        ...SMALL_FLOATS[quantizer.format],
        dstAt: at,
        ldDst: b.wide,
      });
      return { kind: "plain", at, ld: b.wide, width: source.width };
    }
    const groupSize = quantizer.granularity === "token" ? 0 : quantizer.granularity;
    this.#quantize(
      rowsReg,
      source,
      null,
      { ...quantizer, granularity: groupSize || "token" },
      groupSize,
    );
    this.#builder.emit("dequantize", {
      rowsReg,
      codesAt: b.codesAt,
      ldCodes: codeStride(source.width),
      width: source.width,
      scaleAt: b.scaleAt,
      zeroAt: quantizer.symmetric ? -1 : b.zeroAt,
      groupSize,
      dstAt: at,
      ldDst: b.wide,
    });
    return { kind: "plain", at, ld: b.wide, width: source.width };
  }

  /** Place of output column `offset` of a buffer. */
  #shift(at: number, offset: number, linear: PlacedLinear): number {
    if ((offset * 4) % 64 !== 0) {
      throw new ModelError(
        `q, k and v of ${linear.n} rows are stored differently and cannot be run apart`,
        { hint: "give q, k and v the same bits and groupSize" },
      );
    }
    return at + (offset * 4) / 64;
  }
}

/** Entries between the row lists of two experts: whole lines. */
export function listStride(maxRows: number): number {
  return Math.ceil(maxRows / 16) * 16;
}

type HadamardOperands = Pick<
  Operands<"hadamard">,
  | "blocks"
  | "orderK"
  | "orderM"
  | "inner"
  | "matrixAt"
  | "transpose"
  | "preSignAt"
  | "postSignAt"
  | "normF"
>;

function hadamardOperands(t: Extract<PlacedTransform, { op: "hadamard" }>): HadamardOperands {
  const { blocks, orderK, orderM, inner, matrixAt, norm } = t;
  return {
    blocks,
    orderK,
    orderM,
    inner,
    matrixAt,
    transpose: 0,
    preSignAt: -1,
    postSignAt: -1,
    normF: norm,
  };
}

/** Outputs that can share one quantization (the sums depend on the weight's groups). */
function byGroupSize(outputs: LinearOutput[]): { groupSize: number; outputs: LinearOutput[] }[] {
  const groups = new Map<number, LinearOutput[]>();
  for (const output of outputs) {
    const list = groups.get(output.linear.groupSize);
    if (list) list.push(output);
    else groups.set(output.linear.groupSize, [output]);
  }
  return [...groups].map(([groupSize, list]) => ({ groupSize, outputs: list }));
}
