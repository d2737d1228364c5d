/** A Redis server of the test's own: a free port of this machine, nothing on disk, ended by its process. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { Redis } from "ioredis";

export class RedisServer {
  #child: ChildProcess | null = null;

  private constructor(readonly port: number) {}

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  static async start(): Promise<RedisServer> {
    const probe = createServer().listen(0, "127.0.0.1");
    await once(probe, "listening");
    const { port } = probe.address() as { port: number };
    probe.close();
    await once(probe, "close");
    const server = new RedisServer(port);
    await server.begin();
    return server;
  }

  /** Starts the process and waits until it answers. */
  async begin(): Promise<void> {
    const nothingOnDisk = ["--save", "", "--appendonly", "no"];
    const place = ["--port", String(this.port), "--bind", "127.0.0.1"];
    const program = process.env.NIBBLE_REDIS_SERVER ?? "redis-server";
    const child = spawn(program, [...place, ...nothingOnDisk], { stdio: "ignore" });
    this.#child = child;
    child.once("exit", () => {
      if (this.#child === child) this.#child = null;
    });
    await this.command((client) => client.ping());
  }

  /** Ends the process at once, as a power cut would. */
  async end(): Promise<void> {
    const child = this.#child;
    if (!child) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }

  /** Runs something on a connection of its own. */
  async command<T>(run: (client: Redis) => Promise<T>): Promise<T> {
    const client = new Redis(this.url, { maxRetriesPerRequest: null, retryStrategy: () => 50 });
    client.on("error", () => {}); // not up yet: tried again
    try {
      return await run(client);
    } finally {
      client.disconnect();
    }
  }
}
