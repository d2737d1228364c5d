/** Random programs of the statistics and dense algebra ops, with bounds. */
import { type Lab, randomStride } from "./lab.js";
import type { Make } from "./row-cases.js";

const FLOAT_BOUND = 1e-5;

function normalRows(lab: Lab, width: number, scale = 1): Float32Array[] {
  return Array.from({ length: lab.maxRows }, () =>
    Float32Array.from({ length: width }, () => lab.random.normal() * scale),
  );
}

const logitStats: Make = (lab) => {
  const { random } = lab;
  const width = random.pick([1, 2, 17, 96, 320, 1000]);
  const ldLogits = randomStride(random, width);
  const coarse = random.chance(0.3); // ties
  const row = () =>
    Float32Array.from({ length: width }, () => (coarse ? random.int(-2, 2) : random.normal() * 5));
  lab.emit("logitStats", {
    rowsReg: 0,
    logitsAt: lab.f32Rows("logits", ldLogits, "in", row),
    ldLogits,
    width,
    targetsAt: random.chance(0.7)
      ? lab.i32Rows("targets", 1, "in", () => [random.int(0, width - 1)])
      : -1,
    dstAt: lab.f32Rows("dst", 4, "out"),
  });
  // Only the log-sum-exp is a float result; the argmax is an integer below 1000, whose f32 bits are subnormal.
  lab.tolerate(
    "dst",
    Float64Array.from({ length: lab.maxRows * 4 }, (_, i) => (i % 4 === 2 ? 4e-4 : 0)),
  );
};

const klDivergence: Make = (lab) => {
  const { random } = lab;
  const width = random.pick([1, 2, 17, 96, 320, 1000]);
  const ldReference = randomStride(random, width);
  const ldLogits = randomStride(random, width);
  const reference = normalRows(lab, width, 3);
  const noise = random.pick([0, 0.01, 1]);
  lab.emit("klDivergence", {
    rowsReg: 0,
    referenceAt: lab.f32Rows("reference", ldReference, "in", (m) => reference[m] as Float32Array),
    ldReference,
    logitsAt: lab.f32Rows("logits", ldLogits, "in", (m) =>
      (reference[m] as Float32Array).map((x) => x + noise * random.normal()),
    ),
    ldLogits,
    width,
    dstAt: lab.f32Rows("dst", 2, "out"),
  });
  lab.tolerate(
    "dst",
    Float64Array.from({ length: lab.maxRows * 2 }, (_, i) => (i % 2 === 0 ? 3e-5 : 0)),
  );
};

const gram: Make = (lab) => {
  const { random } = lab;
  lab.splittable = false;
  const width = random.pick([1, 5, 16, 33, 64, 100]);
  const rows = normalRows(lab, width);
  const ldSrc = randomStride(random, width);
  const start = Float64Array.from({ length: width * width }, () => random.normal());
  const bounds = start.map((g, e) => {
    const i = Math.floor(e / width);
    const j = e % width;
    if (j < i) return Number.POSITIVE_INFINITY; // only the upper triangle is defined
    const sum = rows.reduce((s, x) => s + Math.abs((x[i] as number) * (x[j] as number)), 0);
    return FLOAT_BOUND * (sum + Math.abs(g));
  });
  lab.emit("gram", {
    rowsReg: 0,
    srcAt: lab.f32Rows("src", ldSrc, "in", (m) => rows[m] as Float32Array),
    ldSrc,
    width,
    gramAt: lab.output("gram", "f64", start, bounds),
  });
};

const absStats: Make = (lab) => {
  const { random } = lab;
  lab.splittable = false;
  const width = random.pick([1, 16, 33, 100]);
  const rows = normalRows(lab, width);
  const ldSrc = randomStride(random, width);
  const start = () => Float64Array.from({ length: width }, () => random.uniform() * 2);
  lab.emit("absStats", {
    rowsReg: 0,
    srcAt: lab.f32Rows("src", ldSrc, "in", (m) => rows[m] as Float32Array),
    ldSrc,
    width,
    sumAbsAt: lab.output("sumAbs", "f64", start(), FLOAT_BOUND * 10),
    maxAbsAt: lab.output("maxAbs", "f32", Float32Array.from(start())),
  });
};

const gemm: Make = (lab) => {
  const { random } = lab;
  const rows = lab.rows;
  const cols = random.pick([1, 3, 16, 33, 70]);
  const inner = random.pick([1, 7, 32, 65, 130]);
  const transA = random.int(0, 1);
  const transB = random.int(0, 1);
  const [aRows, aWidth] = transA ? [inner, lab.maxRows] : [lab.maxRows, inner];
  const [bRows, bWidth] = transB ? [cols, inner] : [inner, cols];
  const lda = randomStride(random, aWidth);
  const ldb = randomStride(random, bWidth);
  const ldc = randomStride(random, cols);
  const skips = { aSkip: random.int(0, 20), bSkip: random.int(0, 20), cSkip: random.int(0, 20) };
  const array = (length: number) => Float32Array.from({ length }, () => random.normal());
  const a = array(skips.aSkip + aRows * lda);
  const b = array(skips.bSkip + bRows * ldb);
  const c = array(skips.cSkip + lab.maxRows * ldc);
  const alphaF = random.pick([1, -1, Math.fround(0.3)]);
  const betaF = random.pick([0, 1, Math.fround(0.7)]);
  const bounds = new Float64Array(c.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      let sum = 0;
      for (let k = 0; k < inner; k++) {
        const x = a[skips.aSkip + (transA ? k * lda + i : i * lda + k)] as number;
        sum += Math.abs(x * (b[skips.bSkip + (transB ? j * ldb + k : k * ldb + j)] as number));
      }
      const at = skips.cSkip + i * ldc + j;
      bounds[at] = FLOAT_BOUND * (Math.abs(alphaF) * sum + Math.abs(betaF * (c[at] as number)));
    }
  }
  lab.splittable = false;
  lab.emit("gemm", {
    rowsReg: 0,
    cols,
    inner,
    aAt: lab.place(a),
    lda,
    transA,
    bAt: lab.place(b),
    ldb,
    transB,
    cAt: lab.output("c", "f32", c, bounds),
    ldc,
    ...skips,
    alphaF,
    betaF,
  });
};

const inverseFactor: Make = (lab) => {
  const { random } = lab;
  lab.splittable = false;
  const n = random.pick([1, 2, 15, 16, 33, 64, 90]);
  const definite = random.chance(0.8);
  const h = new Float64Array(n * n);
  // X^T X of 2 n rows plus a ridge: condition number below a few hundred, so f64 leaves nothing to argue about.
  const x = Float64Array.from({ length: 2 * n * n }, () => random.normal());
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) {
      let sum = i === j ? n / 4 : 0;
      for (let r = 0; r < 2 * n; r++) sum += (x[r * n + i] as number) * (x[r * n + j] as number);
      h[i * n + j] = sum;
    }
  }
  if (!definite) {
    const bad = random.int(0, n - 1);
    h[bad * n + bad] = random.pick([0, -1]);
  }
  const hessianAt = lab.output("hessian", "f64", h, Number.POSITIVE_INFINITY);
  const triangle = Float64Array.from({ length: n * n }, (_, e) =>
    definite && e % n >= Math.floor(e / n) ? 1e-6 : Number.POSITIVE_INFINITY,
  );
  lab.emit("inverseFactor", {
    size: n,
    hessianAt,
    factorAt: lab.output("factor", "f32", new Float32Array(n * n).fill(7), triangle),
    // The failing column depends on the order of elimination; that there is one does not.
    statusAt: lab.output("status", "i32", Int32Array.of(-7), definite ? 0 : n),
  });
};

export const statsCases: Record<string, Make> = {
  logitStats,
  klDivergence,
  gram,
  absStats,
  gemm,
  inverseFactor,
};
