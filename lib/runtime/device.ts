import fs from 'node:fs';
import path from 'node:path';
import { checkOneOf } from '../check.js';
import { BlockprunerError } from '../errors.js';
import { backendFolders, loadAddon } from './addon.js';

/** Where a model is computed. */
export type Device = 'cpu' | 'cuda' | 'metal' | 'vulkan';
export const devices: readonly Device[] = ['cpu', 'cuda', 'metal', 'vulkan'];

/** A GPU, by ggml's name of it; its free memory in bytes. */
export interface Gpu {
    name: string;
    description: string;
    memoryFree: number;
}

/** How ggml's names of the backends begin. */
const backendNames: Record<Device, RegExp> = {
    cpu: /^cpu/i,
    cuda: /^cuda/i,
    metal: /^(metal|mtl)/i,
    vulkan: /^vulkan/i
};

/**
 * Finds the device to compute on: `auto` takes the first kind of GPU there is, else the CPU.
 * @returns the device, and its GPUs; the CPU has none
 * @throws ArgumentError if there can be no such device, BlockprunerError if there is none on this computer
 */
export async function chooseDevice(wanted: Device | 'auto'): Promise<{ device: Device; gpus: Gpu[] }> {
    checkOneOf('device', wanted, ['auto', ...devices]);
    const addon = await loadAddon();
    const tried: Device[] = wanted === 'auto' ? ['cuda', 'metal', 'vulkan', 'cpu'] : [wanted];
    for (const device of tried) {
        if (device === 'cpu') {
            return { device, gpus: [] };
        }
        const file = backendFile(device);
        if (file) {
            addon.loadBackend(file);
        }
        const gpus = addon.devices().filter((found) => found.gpu && backendNames[device].test(found.backend));
        if (gpus.length > 0) {
            return { device, gpus };
        }
    }
    const found = [...new Set(addon.devices().map((device) => `${device.backend} (${device.description})`))];
    throw new BlockprunerError(
        'DEVICE',
        `no ${wanted} device was found on this computer; there is ${found.join(', ')}`
    );
}

/** The GPU's backend alone is loaded: its folder has another CPU backend too. */
function backendFile(device: Device): string | undefined {
    const folder = backendFolders[device];
    const name =
        folder && fs.readdirSync(folder).find((file) => /^(lib)?ggml-(cuda|vulkan|metal)\.(so|dll|dylib)$/.test(file));
    return name ? path.join(folder, name) : undefined;
}
