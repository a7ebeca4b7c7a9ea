// Importance matrices, LoRA adapters and control vectors that were made for a model, for its pruned copy. They name
// layers, and in the pruned file other layers have these names.
import { BlockprunerError } from '../errors.js';
import { checkOutput } from '../output.js';
import type { GgufTensor, GgufValue } from '../runtime/addon.js';
import { parseBlock } from '../runtime/blocks.js';
import { readGguf, writeGguf, type Gguf, type GgufTensorInfo } from '../runtime/gguf.js';
import { architectureOf, splitName } from './host.js';
import { historyOf, originsOf, type PastPruning, type TensorOrigin } from './provenance.js';

/** What can be adapted. */
export type Adaptable = 'importance matrix' | 'LoRA adapter' | 'control vector';

export interface AdaptOptions {
    /** The pruned model. */
    to: string;
    /** The file to write. */
    output: string;
    /** Replace an existing file. Default: false. */
    force?: boolean | undefined;
    signal?: AbortSignal | undefined;
}

export interface Adapted {
    kind: Adaptable;
    output: string;
    /** How many tensors of the file are in the output. */
    kept: number;
    /** The tensors that are not, since they belong to blocks that are gone. */
    gone: string[];
}

/**
 * Writes a copy of an importance matrix (GGUF), a LoRA adapter or a control vector that fits a pruned model, by what
 * that model's file tells of how it was made.
 * @param file made for the very model that was pruned
 * @throws BlockprunerError if it is none of these or was made for another model, or if a part of it has no place in the
 *     pruned model though its block is there
 */
export async function adapt(file: string, { to, output, force, signal }: AdaptOptions): Promise<Adapted> {
    const [given, pruned] = [await readGguf(file, signal), await readGguf(to, signal)];
    const pruning = new Pruning(pruned, file);
    const kind = kindOf(given, file);
    const { tensors, gone, set } = adaptations[kind](given, pruning);
    if (tensors.length === 0) {
        throw new BlockprunerError('ARGUMENT', `nothing is left of ${file}: all of it belongs to blocks that are gone`);
    }
    await checkOutput(output, [...given.files, ...pruned.files], force);
    await writeGguf(output, { sources: given.files, set, tensors }, { force, signal });
    return { kind, output, kept: tensors.length, gone };
}

/** @throws BlockprunerError if the file is none that can be adapted */
function kindOf({ metadata }: Gguf, file: string): Adaptable {
    const type = metadata['general.type'];
    if (type === 'imatrix') {
        return 'importance matrix';
    }
    if (type === 'adapter' && metadata['adapter.type'] === 'lora') {
        return 'LoRA adapter';
    }
    if (metadata['general.architecture'] === 'controlvector') {
        return 'control vector';
    }
    const hint = type === 'mmproj' ? ': a projector fits the pruned model as it is, since the embedding stays' : '';
    const message = `${file} is no importance matrix, LoRA adapter or control vector in GGUF form${hint}`;
    throw new BlockprunerError('ARGUMENT', message);
}

/** What a pruned file tells of its tensors. */
class Pruning {
    readonly architecture: string;
    readonly #last: PastPruning;
    readonly #origins: readonly TensorOrigin[];
    readonly #tensors: ReadonlyMap<string, GgufTensorInfo>;

    /** @param file what is to be adapted, for messages */
    constructor(
        pruned: Gguf,
        private readonly file: string
    ) {
        const [to] = pruned.files as [string];
        const [last] = historyOf(pruned);
        const origins = originsOf(pruned);
        if (!last || !origins) {
            const message = `${to} doesn't tell what its tensors were made of: it was not written by this blockpruner`;
            throw new BlockprunerError('ARGUMENT', message);
        }
        if (last.merged.length > 0) {
            const message = `${to} has merged layers: what was made for the model before doesn't fit these`;
            throw new BlockprunerError('UNSUPPORTED', message);
        }
        this.architecture = architectureOf(pruned);
        this.#last = last;
        this.#origins = origins;
        this.#tensors = new Map(pruned.tensors.map((tensor) => [tensor.name, tensor]));
    }

    /**
     * The tensor that has come of one of the source's; undefined if it is gone.
     * @throws BlockprunerError if the source can't have had it
     */
    of(tensor: string): (TensorOrigin & { shape: number[] }) | undefined {
        const found = this.#origins.find(({ from }) => from.includes(tensor));
        if (found) {
            return { ...found, shape: this.#tensors.get(found.name)?.shape ?? [] };
        }
        const { layer } = splitName(tensor);
        const ofRemoved = this.#last.removed.some((block) => parseBlock(block).layer === layer);
        if (layer === undefined || !ofRemoved) {
            throw this.otherModel(`it has no tensor ${tensor}`);
        }
        return undefined;
    }

    /** The layer at whose end the stream is what it was at the end of a source's layer; undefined: there is none. */
    endOf(layer: number): number | undefined {
        const isFfn = (name: string) => /^blk\.\d+\.(ffn|post_ffw)_/.test(name);
        const layers = new Map<number, { ffn?: number; other?: number }>();
        for (const { name, from } of this.#origins) {
            const [to, source] = [splitName(name).layer, splitName(from[0]!).layer];
            if (to !== undefined && source !== undefined) {
                layers.set(to, { ...layers.get(to), [isFfn(name) ? 'ffn' : 'other']: source });
            }
        }
        const hasFfn = [...layers.values()].some(({ ffn }) => ffn === layer);
        for (const [to, { ffn, other }] of layers) {
            if (ffn === layer) {
                return to;
            }
            if (ffn === undefined && other === layer && !hasFfn) {
                // a linear block in the place of the layer's FFN alone may be a layer of its own
                const [next, after] = [to + 1, layers.get(to + 2)];
                const isInserted = !layers.has(next) && this.#hasLayer(next);
                const isForFfn = after ? after.other === layer + 1 : !this.#hasLayer(to + 2);
                return isInserted && isForFfn ? next : to;
            }
        }
        return undefined;
    }

    #hasLayer(layer: number): boolean {
        return [...this.#tensors.keys()].some((name) => splitName(name).layer === layer);
    }

    get embedding(): number {
        return this.#tensors.get('token_embd.weight')?.shape[0] ?? NaN;
    }

    otherModel(why: string): BlockprunerError {
        const { name } = this.#last.source;
        const message = `${this.file} was made for another model than ${name}, which was pruned: ${why}`;
        return new BlockprunerError('ARGUMENT', message);
    }
}

type Adaptation = (given: Gguf, pruning: Pruning) => { tensors: GgufTensor[]; gone: string[]; set: GgufValue[] };

const adaptations: Record<Adaptable, Adaptation> = {
    /** Columns are what they were, also where rows have another order; joined matrices have the same input. */
    'importance matrix': (given, pruning) => {
        const sums = new Map(given.tensors.map(({ name, shape }) => [name.replace(/\.in_sum2$/, ''), shape]));
        return each(given, /^(.+)\.(in_sum2|counts)$/, pruning, (tensor, ending, { name, from, shape }) => {
            const columns = (sums.get(tensor) ?? []).reduce((product, length) => product * length, 1);
            if (columns !== shape[0]! * (shape[2] ?? 1)) {
                throw pruning.otherModel(`${tensor} has ${columns} columns there and ${shape[0]} here`);
            }
            return tensor === from[0] ? { name: `${name}.${ending}` } : 'joined';
        });
    },
    'LoRA adapter': (given, pruning) => {
        const found = each(
            given,
            /^(.+)\.(lora_[ab])$/,
            pruning,
            (tensor, ending, { name, from, ropeHead, shape }, of) => {
                if (from.length > 1) {
                    const message = `${tensor} can't be mapped: the pruned model has ${from.join(', ')} joined`;
                    throw new BlockprunerError('UNSUPPORTED', message);
                }
                const [mine, its] = ending === 'lora_a' ? [of[0], shape[0]] : [of[1], shape[1]];
                const isEmbedding = tensor === 'token_embd.weight'; // whose parts are the other way round
                if (mine !== its && !isEmbedding) {
                    throw pruning.otherModel(`${tensor} has another shape`);
                }
                return {
                    name: `${name}.${ending}`,
                    ...(ending === 'lora_b' && ropeHead !== undefined && { ropeHead })
                };
            }
        );
        const set = [{ key: 'general.architecture', type: 'string' as const, value: pruning.architecture }];
        return { ...found, set };
    },
    'control vector': (given, pruning) => {
        const gone: string[] = [];
        const tensors = given.tensors.flatMap(({ name, shape }): GgufTensor[] => {
            const [, layer] = /^direction\.(\d+)$/.exec(name) ?? [];
            if (layer === undefined || shape[0] !== pruning.embedding) {
                throw pruning.otherModel(`${name} is no direction of ${pruning.embedding} values`);
            }
            const to = pruning.endOf(Number(layer));
            if (!to) {
                gone.push(name); // also at the end of the first layer, where llama.cpp takes none
                return [];
            }
            return [{ name: `direction.${to}`, from: [{ file: 0, name }] }];
        });
        return { tensors, gone, set: [] };
    }
};

/** Renames tensors that are called after those of the source. */
function each(
    given: Gguf,
    pattern: RegExp,
    pruning: Pruning,
    rename: (
        tensor: string,
        ending: string,
        origin: TensorOrigin & { shape: number[] },
        shape: number[]
    ) => { name: string; ropeHead?: number } | 'joined'
): ReturnType<Adaptation> {
    const [tensors, gone]: [GgufTensor[], string[]] = [[], []];
    for (const { name, file, shape } of given.tensors) {
        const [, tensor, ending] = pattern.exec(name) ?? [];
        if (tensor === undefined || ending === undefined) {
            throw pruning.otherModel(`there is nothing that ${name} could belong to`);
        }
        const origin = pruning.of(tensor);
        if (!origin) {
            gone.push(name);
            continue;
        }
        const renamed = rename(tensor, ending, origin, shape);
        if (renamed !== 'joined') {
            tensors.push({ ...renamed, from: [{ file, name }] });
        }
    }
    return { tensors, gone, set: [] };
}
