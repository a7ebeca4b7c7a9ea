import { checkOneOf } from '../check.js';
import { ArgumentError, BlockprunerError } from '../errors.js';
import type { Draft } from '../output.js';
import { loadAddon, runNative, type GgufPlan, type GgufValue, type TensorImportance } from './addon.js';
import { draftGguf, fillerOf, readGguf, writeGguf, type Gguf } from './gguf.js';
import type { RunOptions } from './model.js';

/**
 * The types that a model can be quantized to without an importance matrix, as llama-quantize names them, from large to
 * small.
 */
export const quantizations = [
    'Q8_0',
    'Q6_K',
    'Q5_1',
    'Q5_K_M',
    'Q5_0',
    'Q5_K_S',
    'Q4_1',
    'Q4_K_M',
    'Q4_K_S',
    'IQ4_NL',
    'Q4_0',
    'IQ4_XS',
    'Q3_K_L',
    'Q3_K_M',
    'Q3_K_S',
    'Q2_K'
] as const;
export type Quantization = (typeof quantizations)[number];

/** Those that need one. */
export const lowQuantizations = [
    'IQ3_M',
    'IQ3_S',
    'IQ3_XS',
    'IQ3_XXS',
    'Q2_K_S',
    'IQ2_M',
    'IQ2_S',
    'IQ2_XS',
    'IQ2_XXS',
    'IQ1_M',
    'IQ1_S'
] as const;

/** The types of a file, as llama-quantize names them. */
export const fileTypes = ['F32', 'F16', 'BF16', ...quantizations, ...lowQuantizations] as const;
export type FileType = (typeof fileTypes)[number];

/** The types of a tensor that a rule may ask for. */
const tensorTypes = [
    ...['f32', 'f16', 'bf16', 'q8_0', 'q6_K', 'q5_1', 'q5_0', 'q5_K', 'q4_1', 'q4_0', 'q4_K', 'iq4_nl', 'iq4_xs'],
    ...['q3_K', 'q2_K', 'iq3_s', 'iq3_xxs', 'iq2_s', 'iq2_xs', 'iq2_xxs', 'iq1_m', 'iq1_s']
] as const;

/** The tensors whose names a regular expression finds get a type of their own. */
export type TensorTypeRule = readonly [pattern: string, type: string];

/**
 * Reads a rule as llama-quantize's `--tensor-type` has it: `attn_v=q8_0`. The case of the type doesn't matter.
 * @throws ArgumentError if it is none, or BlockprunerError if there is no such type
 */
export function parseTensorType(text: string): TensorTypeRule {
    const [, pattern, name] = /^(.+)=([^=]+)$/.exec(text) ?? [];
    if (pattern === undefined || name === undefined) {
        throw new ArgumentError('tensorType', 'NAME=TYPE, such as attn_v=q8_0', text);
    }
    const type = tensorTypes.find((one) => one.toLowerCase() === name.toLowerCase());
    checkOneOf('tensorType', type ?? name, tensorTypes);
    return [pattern.toLowerCase(), type!]; // as all names of tensors are
}

/**
 * The names that a rule finds among some.
 * @throws ArgumentError if its pattern is no regular expression of the quantizer's
 */
export async function namesFound([pattern, type]: TensorTypeRule, names: readonly string[]): Promise<string[]> {
    const addon = await loadAddon();
    try {
        return addon.namesFound(pattern, names);
    } catch {
        throw new ArgumentError('tensorType', 'a regular expression, = and a type', `${pattern}=${type}`);
    }
}

export interface QuantizeGgufOptions extends RunOptions {
    type: FileType;
    threads: number;
    /** What {@link Model.importance} has found of this very model. Default: all columns matter alike. */
    importance?: readonly TensorImportance[] | undefined;
    /** Tensors of other types; the first rule that finds a tensor's name counts. */
    tensorTypes?: readonly TensorTypeRule[] | undefined;
}

/**
 * Writes a copy of a model in another type, by libllama's own quantizer, which quantizes anew what is quantized. Filler
 * of an earlier pruning stays as it is: some devices compute narrow quantized matrices wrongly.
 * @param output where it is written; what is there is replaced
 * @throws BlockprunerError if the quantizer can't; what it has written until then is left
 */
export async function quantizeGguf(
    model: Gguf,
    output: string,
    { type, threads, importance, tensorTypes: rules = [], onProgress, signal }: QuantizeGgufOptions
): Promise<Gguf> {
    const [input] = model.files as [string];
    const addon = await loadAddon();
    const ofFiller = fillerOf(model).map(({ kind, layer }) => [`^blk\\.${layer}\\.${kind}_`, 'f16'] as const);
    const options = { type, threads, importance, tensorTypes: [...ofFiller, ...rules], onProgress };
    try {
        await runNative(signal, (cancel) => addon.quantizeGguf(input, output, { ...options, cancel }));
    } catch (error) {
        throw error instanceof BlockprunerError
            ? new BlockprunerError(error.code, `${input} can't be quantized to ${type}: ${error.message}`, {
                  cause: error
              })
            : error;
    }
    return readGguf(output, signal);
}

/** What an importance matrix was gathered on: the text's name, and how many sequences of how many tokens. */
export interface ImportanceText {
    name: string;
    sequences: number;
    context: number;
}

/**
 * Writes an importance matrix as llama-imatrix does, in its GGUF form, which llama-quantize takes.
 * @throws BlockprunerError if it can't be written, or exists and `force` is not set
 */
export async function writeImatrix(
    output: string,
    importance: readonly TensorImportance[],
    text: ImportanceText,
    force = false
): Promise<void> {
    await writeGguf(output, imatrixOf(importance, text), { force, what: IMATRIX });
}

/**
 * Writes it too, complete but for its name.
 * @throws BlockprunerError if it can't be written; nothing is left behind then
 */
export async function draftImatrix(
    output: string,
    importance: readonly TensorImportance[],
    text: ImportanceText,
    force = false
): Promise<Draft> {
    return draftGguf(output, imatrixOf(importance, text), { force, what: IMATRIX });
}

const IMATRIX = 'importance matrix';

function imatrixOf(
    importance: readonly TensorImportance[],
    text: ImportanceText
): Pick<GgufPlan, 'sources' | 'set' | 'tensors'> {
    const set: GgufValue[] = [
        { key: 'general.type', type: 'string', value: 'imatrix' },
        { key: 'imatrix.datasets', type: 'string[]', value: [text.name] },
        { key: 'imatrix.chunk_count', type: 'u32', value: text.sequences },
        { key: 'imatrix.chunk_size', type: 'u32', value: text.context }
    ];
    const tensors = importance.flatMap(({ tensor, sums, counts }) => [
        { name: `${tensor}.in_sum2`, type: 'f32', shape: [sums.length / counts.length, counts.length], data: sums },
        { name: `${tensor}.counts`, type: 'f32', shape: [1, counts.length], data: counts }
    ]);
    return { sources: [], set, tensors };
}
