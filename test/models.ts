// Models for the tests: the embedded one in other types, tiny random ones of other architectures, changed copies.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { backendFolders, loadAddon, type GgufPlan, type GgufTensor } from '../lib/runtime/addon.js';
import { loadCalibration, Model, readGguf, type Calibration } from '../lib/index.js';

export const tiny = path.resolve(__dirname, '..', 'models', 'blockpruner-tiny.gguf');

/** A folder that is gone after the tests of a file. */
export function temporaryFolder(): string {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-test-'));
    afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));
    return folder;
}

/** llama.cpp's numbers of file types, enum llama_ftype. */
export const fileTypes = { F32: 0, F16: 1, Q4_0: 2, Q8_0: 7, Q4_K_M: 15, BF16: 32, IQ4_NL: 25 };

/** The programs that build_fixtures.cjs compiles. */
export const tools = path.resolve(__dirname, '..', 'build', 'cmake');

/** Whether weights can be repacked for this CPU, as Linux tells it; elsewhere, what needs that is not tested. */
export const supportsRepacking = ((): boolean => {
    const flags = process.platform === 'linux' ? fs.readFileSync('/proc/cpuinfo', 'utf8') : '';
    return process.arch === 'x64' && / avx512_vnni /.test(flags) && !/ amx_int8 /.test(flags);
})();

/** Runs one of llama.cpp's, which must succeed. They look for backends where they are started. */
export function runTool(name: string, ...args: string[]): void {
    execFileSync(path.join(tools, name), args, { cwd: backendFolders.cpu, stdio: ['ignore', 'ignore', 'pipe'] });
}

/** What makes native/fake_gpu.cpp the CUDA backend of a process, by its environment. */
export function fakeGpu(): Record<string, string> {
    const cpu = fs.readFileSync('/proc/cpuinfo', 'utf8').includes(' avx2 ') ? 'haswell' : 'x64';
    const [library] = fs
        .readdirSync(backendFolders.cpu)
        .filter((file) => file === `libggml-cpu-${cpu}.so` || file.startsWith('libggml-cpu-armv8.0'))
        .map((file) => path.join(backendFolders.cpu, file));
    return { BLOCKPRUNER_CUDA_BACKEND: path.join(tools, 'libfake-gpu.so'), FAKE_GPU_CPU: library! };
}

/** Writes a model with its weights in another type. */
export async function quantize(model: string, output: string, type: keyof typeof fileTypes): Promise<string> {
    const addon = await loadAddon();
    await addon.quantizeGguf(model, output, { type, threads: 1 });
    return output;
}

/** Numbers in [−1, 1) that are the same in every run. */
export function randomNumbers(seed: number): () => number {
    let state = BigInt(seed) + 0x9e3779b97f4a7c15n;
    return () => {
        state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
        return Number(state >> 40n) / 2 ** 23 - 1;
    };
}

const embedding = 256,
    heads = 4,
    headSize = 64,
    kvHeads = 2,
    ffn = 256,
    vocabulary = 2048;

interface Architecture {
    /** metadata under the architecture's name */
    keys: Record<string, number>;
    /** a layer's tensors with their shapes; ggml's order */
    tensors: Record<string, number[]>;
}

const llamaKeys = { 'rope.freq_base': 10000 };
const llamaTensors = {
    'attn_norm.weight': [embedding],
    'attn_q.weight': [embedding, heads * headSize],
    'attn_k.weight': [embedding, kvHeads * headSize],
    'attn_v.weight': [embedding, kvHeads * headSize],
    'attn_output.weight': [heads * headSize, embedding],
    'ffn_norm.weight': [embedding],
    'ffn_gate.weight': [embedding, ffn],
    'ffn_up.weight': [embedding, ffn],
    'ffn_down.weight': [ffn, embedding]
};
const qkNorms = { 'attn_q_norm.weight': [headSize], 'attn_k_norm.weight': [headSize] };
const sandwichNorms = { 'post_attention_norm.weight': [embedding], 'post_ffw_norm.weight': [embedding] };

export const architectures = {
    llama: { keys: llamaKeys, tensors: llamaTensors },
    qwen2: {
        keys: llamaKeys,
        tensors: {
            ...llamaTensors,
            'attn_q.bias': [heads * headSize],
            'attn_k.bias': [kvHeads * headSize],
            'attn_v.bias': [kvHeads * headSize]
        }
    },
    qwen3: { keys: llamaKeys, tensors: { ...llamaTensors, ...qkNorms } },
    gemma2: {
        keys: { 'attention.sliding_window': 16, attn_logit_softcapping: 50, final_logit_softcapping: 30 },
        tensors: { ...llamaTensors, ...sandwichNorms }
    },
    gemma3: {
        keys: { ...llamaKeys, 'attention.sliding_window': 16 },
        tensors: { ...llamaTensors, ...qkNorms, ...sandwichNorms }
    }
} satisfies Record<string, Architecture>;

/** Writes a random model of an architecture, F32, with the embedded model's tokenizer. */
export async function randomModel(
    name: keyof typeof architectures,
    output: string,
    { layers = 4 } = {}
): Promise<string> {
    const { keys, tensors }: Architecture = architectures[name];
    const random = randomNumbers(1);
    const tensor = (tensorName: string, shape: number[]): GgufTensor => {
        const isNorm = tensorName.includes('norm');
        // norms around 1; matrices so large that every block matters
        const scale = isNorm ? 0.2 : shape.length === 1 ? 0.5 : 2.5 / Math.sqrt(shape[0]!);
        const data = Float32Array.from(
            { length: shape.reduce((a, b) => a * b) },
            () => (isNorm ? 1 : 0) + scale * random()
        );
        return { name: tensorName, type: 'f32', shape, data };
    };
    const u32 = (key: string, value: number) => ({ key: `${name}.${key}`, type: 'u32' as const, value });
    const isWhole = (key: string) => key === 'attention.sliding_window';
    await writeGguf({
        output,
        sources: [tiny],
        remove: Object.keys((await readGguf(tiny)).metadata).filter((key) => key.startsWith('llama.')),
        set: [
            { key: 'general.architecture', type: 'string', value: name },
            u32('block_count', layers),
            u32('context_length', 512),
            u32('embedding_length', embedding),
            u32('feed_forward_length', ffn),
            u32('attention.head_count', heads),
            u32('attention.head_count_kv', kvHeads),
            u32('attention.key_length', headSize),
            u32('attention.value_length', headSize),
            { key: `${name}.attention.layer_norm_rms_epsilon`, type: 'f32', value: 1e-5 },
            ...Object.entries(keys).map(([key, value]) =>
                isWhole(key) ? u32(key, value) : { key: `${name}.${key}`, type: 'f32' as const, value }
            )
        ],
        tensors: [
            tensor('token_embd.weight', [embedding, vocabulary]),
            tensor('output_norm.weight', [embedding]),
            ...Array.from({ length: layers }).flatMap((_, layer) =>
                Object.entries(tensors).map(([rest, shape]) => tensor(`blk.${layer}.${rest}`, shape))
            )
        ]
    });
    return output;
}

const fixtures = path.join(tools, 'fixtures');

/** The names of llama.cpp's tiny random models; see native/fixtures.cpp. */
export function fixtureNames(): string[] {
    return execFileSync(fixtures, ['list'], { encoding: 'utf8' }).trim().split('\n');
}

/** Writes one of them, six layers or more. */
export function fixture(name: string, output: string): string {
    execFileSync(fixtures, ['make', name, output, '6', backendFolders.cpu], { stdio: 'ignore' });
    return output;
}

/** A copy of a model in which some tensors are zero. */
export async function withZeroed(model: string, output: string, zeroed: string[]): Promise<string> {
    const { tensors } = await readGguf(model);
    await writeGguf({
        output,
        sources: [model],
        tensors: tensors.map(({ name, type, shape }) =>
            zeroed.includes(name) ? { name, type, shape } : { name, from: [{ file: 0, name }] }
        )
    });
    return output;
}

/** A copy of a model with other metadata. */
export async function withMetadata(model: string, output: string, set: GgufPlan['set']): Promise<string> {
    await writeGguf({
        output,
        sources: [model],
        set,
        tensors: (await readGguf(model)).tensors.map(({ name }) => ({ name, from: [{ file: 0, name }] }))
    });
    return output;
}

/** Writes a model as three files, as llama.cpp's gguf-split does; gives the first. */
export async function split(model: string, prefix: string): Promise<string> {
    const { tensors } = await readGguf(model);
    const name = (part: number) => `${prefix}-0000${part + 1}-of-00003.gguf`;
    for (let part = 0; part < 3; part++) {
        const [from, to] = [part, part + 1].map((n) => Math.floor((n * tensors.length) / 3));
        await writeGguf({
            output: name(part),
            sources: [model],
            set: [
                { key: 'split.no', type: 'u16', value: part },
                { key: 'split.count', type: 'u16', value: 3 },
                { key: 'split.tensors.count', type: 'i32', value: tensors.length }
            ],
            tensors: tensors.slice(from, to).map((tensor) => ({
                name: tensor.name,
                from: [{ file: 0, name: tensor.name }]
            }))
        });
    }
    return name(0);
}

export async function writeGguf(
    plan: Pick<GgufPlan, 'output' | 'sources' | 'tensors'> & Partial<GgufPlan>
): Promise<void> {
    await (await loadAddon()).writeGguf({ remove: [], rename: [], select: [], set: [], ...plan }, {});
}

/** Loads a model on the CPU with two short calibration sequences, for as long as `use` runs. */
export async function withModel<T>(
    file: string,
    use: (model: Model, calibration: Calibration) => Promise<T>,
    options: { cacheType?: 'f16' | 'f32'; tokensAtOnce?: number; samples?: number; context?: number } = {}
): Promise<T> {
    const { cacheType, tokensAtOnce, samples = 2, context = 64 } = options;
    const model = await Model.load(file, { device: 'cpu', threads: 1, tokensAtOnce, cacheType });
    try {
        return await use(model, await loadCalibration(model, { file: 'embedded', samples, context }));
    } finally {
        model.dispose();
    }
}
