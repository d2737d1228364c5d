/** `nibble doctor`: what runs here and why the rest does not. */
import { cpus, totalmem } from "node:os";
import { defaultThreads, formatBytes } from "../../core/memory.js";
import { VERSION } from "../../core/version.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

export const doctor = defineVerb({
  name: "doctor",
  summary: "show backends, variants and what is missing",
  examples: ["nibble doctor"],
  define() {},
  async run() {
    const { backendStatuses } = await import("../../kernels/select.js");
    const { nibbleHome } = await import("../../core/home.js");
    const { optionalVariants } = await import("../../kernels/native.js");
    const { preparedFacts } = await import("../../runtime/prepared.js");
    const backends = await backendStatuses();
    const prepared = await preparedFacts();
    const chosen = backends.find((status) => status.available);
    const result = {
      nibble: VERSION,
      node: process.version,
      platform: `${process.platform}-${process.arch}`,
      processor: cpus()[0]?.model.trim() ?? "unknown",
      threads: defaultThreads(),
      memoryBytes: totalmem(),
      home: nibbleHome(),
      preparedWeights: prepared,
      backends,
      optionalVariants: optionalVariants(),
      backend: chosen?.id ?? null,
    };
    return {
      result,
      text: [
        table([
          ["nibble", `${VERSION}, Node ${process.version}, ${result.platform}`],
          ["processor", `${result.processor}, ${result.threads} threads`],
          ["memory", formatBytes(result.memoryBytes)],
          ["home", result.home],
          [
            "prepared",
            prepared.limitBytes === 0
              ? "weights are not prepared (NIBBLE_PREPARED=off)"
              : `weights of ${prepared.files} models, ${formatBytes(prepared.bytes)} of at most ${formatBytes(prepared.limitBytes)} (NIBBLE_PREPARED)`,
          ],
        ]),
        "",
        ...backends.flatMap((status) => [
          `${status.id}: ${status.available ? `runs, variant ${status.variant}` : "does not run here"}${status === chosen ? " (used by default)" : ""}`,
          ...status.notices.map((notice) => `  ${notice}`),
          ...(status.id === "native"
            ? result.optionalVariants.map((line) => `  on request, ${line}`)
            : []),
        ]),
      ].join("\n"),
      exitCode: chosen ? 0 : 1,
    };
  },
});
