// What a pruned file remembers, as `blockpruner.*` metadata keys, of how it was made, and of the prunings before.
import path from 'node:path';
import { z } from 'zod';
import type { GgufTensor, GgufValue } from '../runtime/addon.js';
import { formatBlock, formatLinear, formatMerges, type Removal } from '../runtime/blocks.js';
import type { Gguf } from '../runtime/gguf.js';
import { version } from '../version.js';
import { architectureOf } from './host.js';

/** What is remembered beside what was removed. */
export interface Provenance {
    /** The text that the perplexities are on: its name, and how many sequences of how many tokens. */
    calibration: { name: string; sequences: number; context: number };
    perplexity: { dense: number; pruned: number };
}

const listed = z.array(z.string()).optional();
/** The keys without `blockpruner.`; a value that another version doesn't write is missing. */
const pruningSchema = z.object({
    version: z.string(),
    'source.name': z.string(),
    'source.sha256': z.string(),
    'source.architecture': z.string(),
    removed: z.array(z.string()),
    merged: listed,
    linear: listed,
    refitted: listed,
    tensors: listed,
    'calibration.name': z.string(),
    'calibration.sequences': z.number(),
    'calibration.context': z.number(),
    'perplexity.dense': z.number(),
    'perplexity.pruned': z.number()
});

/** One pruning, as the file that came of it tells. */
export interface PastPruning extends Provenance {
    /** Of blockpruner. */
    version: string;
    /** The file that was pruned. */
    source: { name: string; sha256: string; architecture: string };
    /** Blocks of the source, in the order of their removal. */
    removed: string[];
    /** What layers became, where layers were merged. */
    merged: string[];
    /** Where linear blocks were put in. */
    linear: string[];
    /** The source's tensors that were fitted anew. */
    refitted: string[];
}

/** What a tensor of a pruned file was made of. */
export interface TensorOrigin {
    name: string;
    /** Tensors of the source; several where their rows were joined. */
    from: string[];
    /** The rows of heads of this size have another order, from NEOX to NORM rope order. */
    ropeHead?: number | undefined;
}

/**
 * The keys of a file that was just pruned. Lists are left out where they are empty.
 * @param tensors of the file
 */
export function provenanceKeys(
    gguf: Gguf,
    removal: Removal,
    tensors: readonly GgufTensor[],
    provenance: Provenance,
    hash: string
): GgufValue[] {
    const { removed, merges, linear = [], changes } = removal;
    const { calibration, perplexity } = provenance;
    const values: z.infer<typeof pruningSchema> = {
        version,
        'source.name': path.basename(gguf.files[0]!),
        'source.sha256': hash,
        'source.architecture': architectureOf(gguf),
        removed: removed.map(formatBlock),
        merged: merges && formatMerges(merges),
        linear: linear.length > 0 ? formatLinear(linear) : undefined,
        refitted: changes?.size ? [...changes.keys()] : undefined,
        tensors: tensors.flatMap(formatOrigin),
        'calibration.name': calibration.name,
        'calibration.sequences': calibration.sequences,
        'calibration.context': calibration.context,
        'perplexity.dense': perplexity.dense,
        'perplexity.pruned': perplexity.pruned
    };
    return Object.entries(values)
        .filter(([, value]) => value !== undefined)
        .map(([name, value]): GgufValue => {
            const key = `blockpruner.${name}`;
            return typeof value === 'string'
                ? { key, type: 'string', value }
                : typeof value === 'number'
                  ? { key, type: name.startsWith('perplexity.') ? 'f64' : 'u32', value }
                  : { key, type: 'string[]', value: value };
        });
}

/** `blk.3.attn_q.weight blk.5.attn_q.weight rope 64`: what was made of what, and how. */
function formatOrigin(tensor: GgufTensor): string[] {
    if (!('from' in tensor)) {
        return [];
    }
    const rope = tensor.ropeHead === undefined ? '' : ` rope ${tensor.ropeHead}`;
    return [`${tensor.name} ${tensor.from.map(({ name }) => name).join('+')}${rope}`];
}

/** What the tensors of a pruned file were made of; those that are new are left out. Undefined: it doesn't tell. */
export function originsOf({ metadata }: Gguf): TensorOrigin[] | undefined {
    const found = z.array(z.string()).safeParse(metadata['blockpruner.tensors']);
    return found.data?.map((text) => {
        const [name, from = '', , head] = text.split(' ') as [string, ...(string | undefined)[]];
        return { name, from: from.split('+'), ropeHead: head === undefined ? undefined : Number(head) };
    });
}

/** What a file tells of the pruning before the last one, and of that before it as `blockpruner.previous.previous.*`. */
const previous = 'blockpruner.previous.';

/** The keys that a source has of its own pruning are renamed so that they are its history. */
export const previousKeys: [from: string, to: string][] = [
    [previous, `${previous}previous.`],
    ...Object.keys(pruningSchema.shape).map((name): [string, string] => [`blockpruner.${name}`, `${previous}${name}`])
];

/** How a model was pruned, the last time first; empty for one that wasn't. What can't be read is left out. */
export function historyOf({ metadata }: Gguf): PastPruning[] {
    const history: PastPruning[] = [];
    for (let prefix = 'blockpruner.'; `${prefix}version` in metadata; prefix += 'previous.') {
        const names = Object.keys(pruningSchema.shape);
        const found = pruningSchema.safeParse(Object.fromEntries(names.map((name) => [name, metadata[prefix + name]])));
        if (found.success) {
            const { version: by, removed, merged = [], linear = [], refitted = [], ...of } = found.data;
            history.push({
                version: by,
                source: {
                    name: of['source.name'],
                    sha256: of['source.sha256'],
                    architecture: of['source.architecture']
                },
                removed,
                merged,
                linear,
                refitted,
                calibration: {
                    name: of['calibration.name'],
                    sequences: of['calibration.sequences'],
                    context: of['calibration.context']
                },
                perplexity: { dense: of['perplexity.dense'], pruned: of['perplexity.pruned'] }
            });
        }
    }
    return history;
}
