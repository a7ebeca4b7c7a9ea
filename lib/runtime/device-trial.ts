// The child process of device.ts: loads a backend, computes a tiny graph on each of its devices, and prints what it
// found as JSON. A backend that has no code for the card aborts, which must end nothing but this.
import { messageOf } from '../errors.js';
import { loadAddon } from './addon.js';
import { gpusOf, type Device, type TriedGpu } from './device.js';

async function main(device: Device, library: string, servers: readonly string[]): Promise<void> {
    const addon = await loadAddon();
    addon.loadBackend(library);
    const missing = servers.map((server) => addon.addRpcServer(server)).find((failure) => failure !== undefined);
    if (missing !== undefined) {
        throw new Error(missing);
    }
    const gpus: TriedGpu[] = [];
    for (const gpu of gpusOf(addon, device)) {
        gpus.push({ ...gpu, failure: await addon.tryDevice(gpu.name, {}).then(() => undefined, messageOf) });
    }
    process.stdout.write(JSON.stringify(gpus));
}

main(process.argv[2] as Device, process.argv[3]!, process.argv.slice(4)).catch((error: unknown) => {
    process.stderr.write(`${messageOf(error)}\n`);
    process.exitCode = 1;
});
