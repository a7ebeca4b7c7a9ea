import type { Argv } from 'yargs';
import { formatBytes } from '../format.js';
import { buildBackend } from '../runtime/addon.js';
import { findDevices, type FoundDevice } from '../runtime/device.js';
import { jsonOption } from './options.js';
import { print } from './print.js';

export const command = 'devices';
export const describe = 'Show where models can be computed on this computer, and why not elsewhere';

export const builder = (yargs: Argv) =>
    yargs
        .options({
            build: {
                choices: ['cuda', 'rpc'] as const,
                describe:
                    'First build a backend: CUDA for the GPUs of this computer, which needs its toolkit (nvcc); ' +
                    'RPC for other computers'
            },
            json: jsonOption
        })
        .example('$0 devices --build cuda', 'where the prebuilt backend has no code for the GPU');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    if (argv.build) {
        await buildBackend(argv.build);
    }
    const found = await findDevices();
    print(found, argv.json, () => found.map(deviceLine));
}

function deviceLine({ device, works, description, gpus }: FoundDevice): string {
    const memory = gpus.map((gpu) => `${formatBytes(gpu.memoryFree)} of ${formatBytes(gpu.memoryTotal)} free`);
    const what = works && memory.length > 0 ? `${description}; ${memory.join('; ')}` : description;
    return `${device.padEnd(8)} ${works ? 'works' : 'no   '}  ${what}`;
}
