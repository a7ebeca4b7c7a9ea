import fs from 'node:fs/promises';
import { z } from 'zod';
import { paperName, type Block } from '../runtime/blocks.js';
import { BlockprunerError, messageOf } from '../errors.js';

/** The file that the paper's repository writes: how many blocks are removed -> which, in the order of their removal. */
const schema = z.record(
    z.string().regex(/^[1-9]\d*$/),
    z.array(z.tuple([z.enum(['mha', 'mlp']), z.number().int().nonnegative()]))
);

/** Blocks in the order of their removal -> `{"1": [["mha", 25]], "2": [["mha", 25], ["mha", 27]], …}` */
export function formatOrder(order: readonly Block[]): string {
    const entries = order.map((_, index) => [
        String(index + 1),
        order.slice(0, index + 1).map(({ kind, layer }) => [paperName(kind), layer])
    ]);
    return JSON.stringify(Object.fromEntries(entries)) + '\n';
}

/**
 * The blocks that a published order removes first.
 * @param remove how many of them
 * @throws BlockprunerError if the file is no order file or has no such number
 */
export async function readOrder(file: string, remove: number): Promise<Block[]> {
    let parsed: unknown;
    try {
        parsed = JSON.parse(await fs.readFile(file, 'utf8'));
    } catch (error) {
        throw new BlockprunerError(
            'INPUT',
            `can't read the order ${file}: ${(error as NodeJS.ErrnoException).code === 'ENOENT' ? 'there is no such file' : messageOf(error).replace(/\s+/g, ' ')}`
        );
    }
    const result = schema.safeParse(parsed);
    if (!result.success) {
        const issue = result.error.issues[0]!;
        throw new BlockprunerError(
            'INPUT',
            `${file} is no order file ({"1": [["mha", 25]], …}): at ${issue.path.join('.') || 'its top'}: ${issue.message}`
        );
    }
    const blocks = result.data[String(remove)];
    if (!blocks) {
        throw new BlockprunerError(
            'INPUT',
            `${file} has no order for ${remove} blocks: it goes up to ${Math.max(0, ...Object.keys(result.data).map(Number))}`
        );
    }
    const order = blocks.map(([name, layer]): Block => ({ kind: name === 'mha' ? 'attn' : 'ffn', layer }));
    if (order.length !== remove || new Set(order.map((block) => `${block.kind}.${block.layer}`)).size !== remove) {
        throw new BlockprunerError('INPUT', `${file}: entry "${remove}" must list ${remove} different blocks`);
    }
    return order;
}
