import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { checkInteger, checkOneOf } from '../check.js';
import { BlockprunerError } from '../errors.js';
import { backendFolders, builtBackend, loadAddon, runNative, type Addon } from './addon.js';

/** Where a model is computed; `rpc`: on other computers, whose addresses are given beside it. */
export type Device = 'cpu' | 'cuda' | 'metal' | 'vulkan' | 'rpc';
/** What can be there without an address. */
export const devices: readonly Device[] = ['cpu', 'cuda', 'metal', 'vulkan'];

/** A GPU, by ggml's name of it; its memory in bytes. */
export interface Gpu {
    name: string;
    description: string;
    memoryFree: number;
    memoryTotal: number;
}

/** A GPU on which a tiny graph was computed; why that failed, if it did. */
export interface TriedGpu extends Gpu {
    failure?: string | undefined;
}

/** What is there of one kind of device. */
export interface FoundDevice {
    device: Device;
    /** Whether there is one, as far as can be known. */
    present: boolean;
    /** Whether models can be computed on it. */
    works: boolean;
    /** What it is, or why it doesn't work. */
    description: string;
    /** The library of the backend, if there is one. */
    library?: string | undefined;
    gpus: TriedGpu[];
}

/** What models are computed on. */
export interface ChosenDevice {
    device: Device;
    /** Those GPUs that work; the CPU has none. */
    gpus: Gpu[];
    /** Whether the backend is the prebuilt one, which the stock runtime has too. */
    prebuilt: boolean;
}

/** How ggml's names of the backends begin. */
const backendNames: Record<Device, RegExp> = {
    cpu: /^cpu/i,
    cuda: /^cuda/i,
    metal: /^(metal|mtl)/i,
    vulkan: /^vulkan/i,
    rpc: /^rpc$/i
};

/** A backend is given so long, in milliseconds, to compute a tiny graph: the first one of a driver may be slow. */
const TRIAL_TIME = 120_000;

/**
 * Finds the device to compute on: `auto` takes the first kind of GPU that works, else the CPU. A kind of GPU is tried
 * in a process of its own first, once: a backend that has no code for the card would end this one.
 * @param onNotice hears of a GPU that is there and can't be used, and what is used instead
 * @param rpc addresses of RPC servers, host:port: they are computed on then, and `wanted` must be `auto` or `rpc`
 * @throws ArgumentError if there can be no such device, BlockprunerError if there is none on this computer
 */
export async function chooseDevice(
    wanted: Device | 'auto',
    onNotice?: (notice: string) => void,
    rpc: readonly string[] = []
): Promise<ChosenDevice> {
    const ofRpc: readonly Device[] = rpc.length > 0 ? ['rpc'] : [];
    checkOneOf('device', wanted, ['auto', ...devices, ...ofRpc]);
    const ofThisComputer: readonly Device[] = wanted === 'auto' ? ['cuda', 'metal', 'vulkan', 'cpu'] : [wanted];
    const kinds = ofRpc.length > 0 ? ofRpc : ofThisComputer;
    const failures: string[] = [];
    for (const device of kinds) {
        const found = await tryDevice(device, rpc);
        if (found.works) {
            if (failures.length > 0) {
                onNotice?.(`${failures.join('; ')}: computing on ${nameOf(device)} instead`);
            }
            return {
                device,
                gpus: found.gpus.filter(({ failure }) => failure === undefined),
                prebuilt: found.library === undefined || found.library === prebuiltFile(device)
            };
        }
        // most computers have no such GPU, which is no news
        if (wanted !== 'auto' || found.present) {
            failures.push(`${nameOf(device)} can't be used: ${found.description}`);
        }
    }
    throw new BlockprunerError('DEVICE', failures.join('; '));
}

/** What is there of each kind of device, and whether it works. */
export async function findDevices(): Promise<FoundDevice[]> {
    return Promise.all(devices.map((device) => tryDevice(device)));
}

/**
 * Lends this computer's devices to others over llama.cpp's RPC, until the process ends.
 * @param endpoint host:port
 * @throws BlockprunerError if the RPC backend isn't built, there is no such device, or the port is taken
 */
export async function serveDevices(
    endpoint: string,
    options: {
        device?: Device | 'auto' | undefined;
        threads?: number | undefined;
        onNotice?: ((notice: string) => void) | undefined;
    } = {}
): Promise<void> {
    const { device = 'auto', threads = os.availableParallelism(), onNotice } = options;
    checkInteger('threads', threads, { least: 1 });
    if (!isEndpoint(endpoint)) {
        throw new BlockprunerError('ARGUMENT', `${endpoint} is no address such as 127.0.0.1:50052`);
    }
    const { gpus } = await chooseDevice(device, onNotice);
    const library = backendFile('rpc');
    if (!library) {
        throw new BlockprunerError('DEVICE', RPC_NOT_BUILT);
    }
    const addon = await loadAddon();
    addon.loadBackend(library);
    const cpu = addon.devices().filter((one) => backendNames.cpu.test(one.backend));
    const served = gpus.length > 0 ? gpus : cpu;
    await runNative(undefined, (cancel) =>
        addon.serveRpc(
            endpoint,
            threads,
            served.map(({ name }) => name),
            { cancel }
        )
    );
}

/** Whether a text is the address of an RPC server, host:port. */
export function isEndpoint(text: string): boolean {
    return /^[^\s:]+:\d{1,5}$/.test(text);
}

const RPC_NOT_BUILT = "the RPC backend isn't built: 'blockpruner devices --build rpc' does it";

const found = new Map<string, Promise<FoundDevice>>();

/** Finds a kind of device and tries it, once in this process. */
function tryDevice(device: Device, servers: readonly string[] = []): Promise<FoundDevice> {
    const name = [device, ...servers].join(' ');
    const before = found.get(name);
    if (before) {
        return before;
    }
    const now = device === 'cpu' ? describeCpu() : tryGpus(device, servers);
    found.set(name, now);
    now.catch(() => found.delete(name));
    return now;
}

async function describeCpu(): Promise<FoundDevice> {
    await loadAddon();
    const description = `${os.cpus()[0]?.model.trim() ?? 'CPU'}, ${os.availableParallelism()} threads`;
    return { device: 'cpu', present: true, works: true, description, gpus: [] };
}

async function tryGpus(device: Device, servers: readonly string[]): Promise<FoundDevice> {
    const library = backendFile(device);
    if (!library) {
        const description =
            device === 'rpc' ? RPC_NOT_BUILT : `there is no ${nameOf(device)} backend for this platform`;
        return { device, present: false, works: false, description, gpus: [] };
    }
    const addon = await loadAddon();
    if (device === 'rpc') {
        return tryServers(addon, library, servers);
    }
    const failure = addon.loadBackend(library); // once: each time would add the same GPUs again
    const seen = gpusOf(addon, device);
    if (failure !== undefined || seen.length === 0) {
        const named = variableOf(device) in process.env; // by someone who wants to know why it fails
        const present = failure !== undefined && (named || hasDriver(device));
        return { device, present, works: false, description: whyNone(failure, present, library), library, gpus: [] };
    }
    const gpus = await runTrial(device, library, servers, seen);
    const works = gpus.some((gpu) => gpu.failure === undefined);
    const description = gpus.map((gpu) => `${gpu.description}${gpu.failure ? `: ${gpu.failure}` : ''}`).join('; ');
    return { device, present: true, works, description, library, gpus };
}

/** Tries RPC servers in another process before this one has anything to do with them: one that isn't there ends it. */
async function tryServers(addon: Addon, library: string, servers: readonly string[]): Promise<FoundDevice> {
    const nameless = servers.map((server) => ({ name: server, description: server, memoryFree: 0, memoryTotal: 0 }));
    const tried = await runTrial('rpc', library, servers, nameless);
    const failed = tried.filter(({ failure }) => failure !== undefined);
    const result = { device: 'rpc' as const, present: true, library };
    if (failed.length > 0) {
        // the trial ends at the first server that isn't there, and says where in llama.cpp
        const description = failed[0]!.failure!.replace(/^llama\.cpp gave up: (\S+:\d+: )?/, '');
        return { ...result, works: false, description, gpus: tried };
    }
    addon.loadBackend(library);
    servers.forEach((server) => addon.addRpcServer(server));
    const gpus = gpusOf(addon, 'rpc').filter(({ description }) => servers.includes(description));
    return { ...result, works: gpus.length > 0, description: gpus.map((gpu) => gpu.description).join('; '), gpus };
}

/** Why a backend shows no GPU. */
function whyNone(failure: string | undefined, present: boolean, library: string): string {
    const missing = /: (\S+): cannot open shared object/.exec(failure ?? '')?.[1];
    return failure === undefined || !present
        ? 'there is no such GPU on this computer, or no driver for it'
        : missing && missing !== library
          ? `${missing} is missing: install CUDA 13's runtime libraries, and name their folder in LD_LIBRARY_PATH`
          : failure;
}

function runTrial(
    device: Device,
    library: string,
    servers: readonly string[],
    gpus: readonly Gpu[]
): Promise<TriedGpu[]> {
    const program = path.join(__dirname, 'device-trial.js');
    return new Promise((resolve) => {
        execFile(
            process.execPath,
            [program, device, library, ...servers],
            { timeout: TRIAL_TIME },
            (error, stdout, stderr) => {
                if (!error) {
                    return resolve(JSON.parse(stdout) as TriedGpu[]);
                }
                const reason = stderr.trim().split('\n').at(-1) || `its trial ended with ${error.signal ?? error.code}`;
                // a backend of the wrong card's code is what makes CUDA fail in most cases
                const help =
                    device === 'cuda' ? "; 'blockpruner devices --build cuda' builds a backend for this GPU" : '';
                const failure = error.killed ? 'its trial did not end' : `${reason}${help}`;
                resolve(gpus.map((gpu) => ({ ...gpu, failure })));
            }
        );
    });
}

/** Whether the driver of such a GPU is there, as far as can be known without the backend. */
function hasDriver(device: Device): boolean {
    if (device !== 'cuda') {
        return false; // without the driver's loader, libvulkan, there is nothing to find out
    }
    return process.platform === 'win32'
        ? fs.existsSync(path.join(process.env.SystemRoot ?? 'C:\\Windows', 'System32', 'nvcuda.dll'))
        : fs.existsSync('/dev/nvidia0') || fs.existsSync('/proc/driver/nvidia/version') || fs.existsSync('/dev/dxg');
}

/** The GPUs of a backend that is loaded. */
export function gpusOf(addon: Addon, device: Device): Gpu[] {
    return addon
        .devices()
        .filter((one) => one.gpu && backendNames[device].test(one.backend))
        .map(({ name, description, memoryFree, memoryTotal }) => ({ name, description, memoryFree, memoryTotal }));
}

function nameOf(device: Device): string {
    return ['cpu', 'cuda', 'rpc'].includes(device) ? device.toUpperCase() : device === 'metal' ? 'Metal' : 'Vulkan';
}

/**
 * The library of a backend: the one that an environment variable such as BLOCKPRUNER_CUDA_BACKEND names, else one
 * that was built here, else the prebuilt one. It alone is loaded: its folder has another CPU backend too.
 */
function backendFile(device: Device): string | undefined {
    const named = process.env[variableOf(device)];
    return named || ((device === 'cuda' || device === 'rpc') && builtBackend(device)) || prebuiltFile(device);
}

function prebuiltFile(device: Device): string | undefined {
    const folder = device === 'rpc' ? '' : backendFolders[device];
    const name =
        folder && fs.readdirSync(folder).find((file) => /^(lib)?ggml-(cuda|vulkan|metal)\.(so|dll|dylib)$/.test(file));
    return name ? path.join(folder, name) : undefined;
}

/** The environment variable that names the library of a backend. */
function variableOf(device: Device): string {
    return `BLOCKPRUNER_${device.toUpperCase()}_BACKEND`;
}
