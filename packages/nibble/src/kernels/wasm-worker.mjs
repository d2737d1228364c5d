/**
 * One thread of the wasm backend: waits for runs posted in the control words of the shared arena and helps with them. Plain
 * JavaScript without imports, so that it starts as it stands in node:worker_threads and in a browser's module Worker.
 * The first message brings { module, memory, thread, threads, spins, words }; after that the thread never returns to its
 * event loop until it is told to end (program 0).
 */
function serve({ module, memory, thread, threads, spins, words }, post) {
  const control = new Int32Array(memory.buffer, 0, 1024);
  const { runTickets, spin } = new WebAssembly.Instance(module, { env: { memory } }).exports;
  let job = 0;
  post({ ready: thread });
  for (;;) {
    if (!spin(words.job * 4, job, spins)) Atomics.wait(control, words.job, job);
    const next = Atomics.load(control, words.job);
    if (next === job) continue;
    job = next;
    if (Atomics.load(control, words.program) === 0) return;
    let failure = null;
    let ended = 0;
    try {
      ended = runTickets(thread, threads);
    } catch (error) {
      failure = String(error);
      Atomics.store(control, words.fault, 1);
    }
    if (ended === 0 && failure === null) continue;
    // This thread finished the run, or broke it. It may have woken for another one: the number is in the words.
    const run = Atomics.load(control, words.run);
    Atomics.store(control, words.done, run);
    Atomics.notify(control, words.done);
    if (failure !== null || Atomics.load(control, words.messages) !== 0)
      post({ done: run, failure });
    if (failure !== null) return;
  }
}

const inNode = typeof process === "object" && process.versions?.node !== undefined;
if (inNode) {
  const { parentPort } = await import("node:worker_threads");
  parentPort.once("message", (setup) => serve(setup, (message) => parentPort.postMessage(message)));
} else {
  self.onmessage = ({ data }) => serve(data, (message) => self.postMessage(message));
}
