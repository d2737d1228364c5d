import { expect, describe as group, it } from "vitest";
import { formatBytes, formatCount, formatSeconds, parseBytes } from "./memory.js";
import {
  describe,
  jsonRenderer,
  lineRenderer,
  Pace,
  type TextSink,
  ttyRenderer,
} from "./progress.js";

function sink(): TextSink & { text: string } {
  return {
    text: "",
    columns: 60,
    write(part: string) {
      this.text += part;
    },
  };
}

group("sizes", () => {
  it("reads what it writes", () => {
    expect(parseBytes("8GiB")).toBe(8 * 2 ** 30);
    expect(parseBytes("500 MB")).toBe(500e6);
    expect(parseBytes("1.5g")).toBe(1.5 * 2 ** 30);
    expect(parseBytes("4096")).toBe(4096);
    expect(() => parseBytes("much")).toThrow(/not a size/);
    expect(formatBytes(0)).toBe("0 B");
    expect(formatBytes(53.14 * 2 ** 20)).toBe("53.1 MiB");
    expect(formatSeconds(200)).toBe("3 min 20 s");
    expect(formatSeconds(7500)).toBe("2 h 05 min");
    expect(formatCount(134_515_008)).toBe("135 M");
  });
});

group("progress", () => {
  const step = (item: number, total = 4) => ({
    type: "step" as const,
    stage: "quantizing",
    item,
    total,
  });

  it("estimates the rest from the pace so far", () => {
    let now = 0;
    const pace = new Pace(() => now);
    expect(pace.eta(step(0))).toBeUndefined();
    now = 2000;
    expect(pace.eta(step(1))).toBeCloseTo(6);
    now = 4000;
    expect(pace.eta(step(4))).toBeUndefined();
  });

  it("writes one plain line per item and no control characters", () => {
    const out = sink();
    const renderer = lineRenderer(out);
    for (let i = 1; i <= 4; i++)
      renderer.handle({ ...step(i), name: `layer ${i - 1}`, loss: 0.001 });
    renderer.handle({ type: "log", level: "warn", message: "no data" });
    renderer.handle({ type: "log", level: "debug", message: "hidden" });
    expect(out.text.trim().split("\n")).toHaveLength(5);
    expect(out.text).toContain("quantizing 2/4 layer 1 · loss 1.00e-3");
    expect(out.text).toContain("warning: no data");
    // biome-ignore lint/suspicious/noControlCharactersInRegex: their absence is what is tested
    expect(out.text).not.toMatch(/[\x00-\x09\x0b-\x1f]/);
  });

  it("keeps a live line within the width and clears it", () => {
    const out = sink();
    const renderer = ttyRenderer(out);
    renderer.handle({ ...step(4), name: "x".repeat(200) });
    expect(out.text.length).toBeLessThan(60);
    renderer.close();
    expect(out.text.endsWith("\r\x1b[2K")).toBe(true);
  });

  it("gives one JSON object per event", () => {
    const out = sink();
    const renderer = jsonRenderer(out);
    renderer.handle(step(1));
    renderer.handle({ type: "log", level: "info", message: "hello" });
    const events = out.text
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(events[0]).toMatchObject({ type: "step", stage: "quantizing", item: 1 });
    expect(events[1]).toEqual({ type: "log", level: "info", message: "hello" });
  });

  it("is quiet when asked", () => {
    const out = sink();
    lineRenderer(out, "quiet").handle(step(1));
    lineRenderer(out, "quiet").handle({ type: "log", level: "warn", message: "x" });
    expect(out.text).toBe("");
    expect(describe(step(0, 0), undefined)).toContain("quantizing");
  });
});
