import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../../core/rng.js";
import { barChart } from "./bars.js";
import { heatmap, rampColour } from "./heatmap.js";
import { countBins, histogram } from "./histogram.js";
import { lineChart } from "./lines.js";
import { paretoChart, paretoFront } from "./pareto.js";
import { peaks, surfaceChart } from "./surface.js";
import { formatNumber, linearScale, logScale, wrap } from "./svg.js";

const rng = new Philox(4, "charts");
const pictures: Record<string, () => string> = {
  lines: () =>
    lineChart({
      title: "T <&>",
      subtitle: "what to see",
      xLabel: "layer",
      yLabel: "error (%)",
      logY: true,
      series: [
        {
          name: "K & V",
          points: [0, 1, 2].map((x) => ({ x, y: x + 1, low: x + 0.5, high: x + 2 })),
        },
      ],
    }),
  bars: () =>
    barChart({
      title: "T <&>",
      xLabel: "recovery (%)",
      series: ["a", "b"],
      zero: false,
      reference: { value: 100, label: "original" },
      groups: [{ name: "g", note: "n", bars: [{ value: 99, low: 97, high: 101 }, null] }],
    }),
  pareto: () =>
    paretoChart({
      title: "T <&>",
      xLabel: "bits",
      yLabel: "perplexity",
      speedLabel: "tokens/s",
      points: [
        { name: "a", x: 4, y: 30, speed: 10 },
        { name: "b", x: 16, y: 20, baseline: true },
        { name: "c", x: 16, y: 40, low: 30, high: 50 },
      ],
    }),
  surface: () => {
    const values = rng.normals(600).map(Math.abs);
    const surfaces = [{ name: "Before", values, rows: 6, columns: 100 }];
    return surfaceChart({
      title: "T <&>",
      columnLabel: "channel",
      rowLabel: "token",
      valueLabel: "|x|",
      surfaces,
    });
  },
  heatmap: () =>
    heatmap({
      title: "T <&>",
      rows: ["q", "k"],
      columns: ["0", "1"],
      xLabel: "layer",
      yLabel: "module",
      valueLabel: "KL",
      log: true,
      values: [
        [1, 2],
        [Number.NaN, 3],
      ],
    }),
  histogram: () =>
    histogram({ title: "T <&>", xLabel: "w / s", values: rng.normals(300), grid: [-1, 0, 1] }),
};

describe("charts", () => {
  it.each(Object.keys(pictures))(
    "%s: well formed, escaped, light and dark, no script or link, no NaN",
    (name) => {
      const svg = (pictures[name] as () => string)();
      expect(svg).toMatch(/^<svg [^>]*role="img" aria-label="T &lt;&amp;&gt;"/);
      expect(svg).toContain("prefers-color-scheme:dark");
      expect(svg).not.toMatch(/NaN|undefined|Infinity|<script|href|url\(/);
      const open: string[] = [];
      for (const [, close, tag, , self] of svg.matchAll(
        /<(\/?)([a-z]+)((?:"[^"]*"|[^">])*?)(\/?)>/g,
      )) {
        if (close) expect(open.pop()).toBe(tag);
        else if (!self) open.push(tag as string);
      }
      expect(open).toEqual([]);
    },
  );
  it("same input, same bytes", () => {
    const { lines } = pictures as { lines: () => string };
    expect(lines()).toBe(lines());
  });
});

describe("scales", () => {
  it("have round ticks inside the domain, at least two", () => {
    fc.assert(
      fc.property(
        fc.double({ min: -1e4, max: 1e4, noNaN: true }),
        fc.double({ min: 1e-3, max: 1e4, noNaN: true }),
        (low, span) => {
          const scale = linearScale([low, low + span], [0, 100]);
          expect(scale.ticks.length).toBeGreaterThanOrEqual(2);
          expect(scale.ticks.length).toBeLessThanOrEqual(12);
          expect(scale(low)).toBeGreaterThanOrEqual(-1e-6);
          expect(scale(low + span)).toBeLessThanOrEqual(100 + 1e-6);
        },
      ),
    );
    fc.assert(
      fc.property(
        fc.double({ min: 1e-6, max: 1e6, noNaN: true }),
        fc.double({ min: 1, max: 1e8, noNaN: true }),
        (low, factor) => {
          const { ticks } = logScale([low, low * factor], [0, 100]);
          expect(ticks.length).toBeGreaterThanOrEqual(1);
          expect(ticks.length).toBeLessThanOrEqual(15);
        },
      ),
    );
    expect(linearScale([3, 3], [0, 10])(3)).toBe(5);
    expect(linearScale([0, 1], [0, 10]).ticks.map((t) => t.label)).toEqual([
      "0",
      "0.2",
      "0.4",
      "0.6",
      "0.8",
      "1.0",
    ]);
  });
  it("numbers get no more digits than they need", () => {
    expect([0, 12, 0.5, 1e7, 0.00001].map((v) => formatNumber(v))).toEqual([
      "0",
      "12.0",
      "0.500",
      "1e7",
      "1e-5",
    ]);
  });
});

describe("parts", () => {
  it("the Pareto front holds exactly the points that no other beats in both", () => {
    const point = fc.record({
      x: fc.integer({ min: 0, max: 9 }),
      y: fc.integer({ min: 0, max: 9 }),
    });
    fc.assert(
      fc.property(fc.array(point, { minLength: 1 }), (points) => {
        const front = paretoFront(points);
        for (const p of points) {
          const beaten = points.some((q) => (q.x < p.x && q.y <= p.y) || (q.x <= p.x && q.y < p.y));
          const kept = front.some((q) => q.x === p.x && q.y === p.y);
          expect(kept).toBe(!beaten);
        }
      }),
    );
  });
  it("thinning a surface keeps its highest peak", () => {
    const values = new Float64Array(50 * 700);
    values[13 * 700 + 611] = 9;
    const thin = peaks({ name: "", values, rows: 50, columns: 700 }, 10, 60);
    expect(thin.values.length).toBe(600);
    expect(Math.max(...thin.values)).toBe(9);
  });
  it("bins hold every value", () => {
    const counts = countBins([-9, 0, 0.5, 1, 9], 0, 1, 4);
    expect([...counts]).toEqual([2, 0, 1, 2]);
  });
  it("the colour ramp has its ends and clamps", () => {
    expect(rampColour(0)).toBe("#251d54");
    expect(rampColour(1)).toBe("#f8e03e");
    expect(rampColour(7)).toBe("#f8e03e");
  });
  it("wraps at words", () => expect(wrap("one two three", 60)).toEqual(["one two", "three"]));
});
