/** `nibble sweep`: a grid of recipes and models from one YAML, measured alike; table, JSON, Pareto picture. */
import { join } from "node:path";
import { writeFileAtomic } from "../../core/atomic-write.js";
import { defined, type EngineFlags, engineOptions, integer } from "../options.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  output: string;
  queue?: string;
  queueLock: number;
}

export const sweep = defineVerb<Options>({
  name: "sweep",
  summary: "compress and measure a grid of recipes and models",
  examples: [
    "nibble sweep sweep.yaml -o results",
    "nibble sweep sweep.yaml -o results --queue redis://10.0.0.5:6379",
  ],
  resumable: true,
  define(command) {
    command
      .argument("<file>", "sweep in YAML: version, models, recipes, eval")
      .requiredOption(
        "-o, --output <dir>",
        "folder for sweep.json, sweep.md, sweep.html (and artifacts that are kept)",
      )
      .option(
        "--queue <url>",
        "share the jobs through Redis with every machine that runs the same command (needs the packages bullmq and ioredis)",
      )
      .option(
        "--queue-lock <seconds>",
        "with --queue: a machine that is silent for so long has died, and its job goes to another; equal on all machines",
        integer("--queue-lock", 1, 86400),
        120,
      );
    engineOptions(command);
  },
  async run({ onProgress, signal, output }, [file = ""], options) {
    const { planSweep } = await import("../../recipe/sweep-plan.js");
    const { runSweep, sweepReport } = await import("../../recipe/sweep.js");
    const { selectBackend } = await import("../../kernels/select.js");
    const backend = await selectBackend(options.backend, (line) => output.log(line));
    const { variant } = await backend.status();
    const { fetchDatasetFile } = await import("../../hub/dataset.js");
    const plan = await planSweep(file, `${backend.id} ${variant ?? ""}`.trim(), (dataset, name) =>
      fetchDatasetFile(dataset, name, { signal }),
    );
    const run = {
      output: options.output,
      backend: options.backend,
      onProgress,
      signal,
      ...defined({ threads: options.threads }),
    };
    const rows =
      options.queue === undefined
        ? await runSweep(plan, run)
        : await (await import("../../recipe/sweep-queue.js")).runSweepOnQueue(
            plan,
            run,
            options.queue,
            { lockMs: options.queueLock * 1000 },
          );
    const chosen = options.backend === "auto" ? "" : ` --backend ${options.backend}`;
    const command = `nibble sweep ${file}${chosen} -o ${options.output}`;
    const report = sweepReport(plan, rows, command);
    await writeFileAtomic(join(options.output, "sweep.json"), report.json);
    await writeFileAtomic(join(options.output, "sweep.md"), report.markdown);
    await writeFileAtomic(join(options.output, "sweep.html"), report.html);
    return {
      result: { rows, front: report.front },
      text: report.markdown,
      ...(rows.some((row) => row.error) ? { exitCode: 1 } : {}),
    };
  },
});
