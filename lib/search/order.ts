import fs from 'node:fs/promises';
import { z } from 'zod';
import { checkInteger } from '../check.js';
import { BlockprunerError, messageOf } from '../errors.js';
import { paperName, SkipSet, type Block } from '../runtime/blocks.js';

/**
 * The file that the paper's repository writes: by the number of removed blocks, which they are. Theirs have them in the
 * order of the layers, ours in that of the removals.
 */
const schema = z.record(
    z.string().regex(/^[1-9]\d*$/),
    z.array(z.tuple([z.enum(['mha', 'mlp']), z.number().int().nonnegative()]))
);
type Entry = z.infer<typeof schema>[string];

/**
 * Writes an order as the paper's repository does: `{"1": [["mha", 25]], "2": [["mha", 25], ["mha", 27]], …}`.
 * @throws BlockprunerError for an order that has a linear block, which such files can't tell of
 */
export function formatOrder(order: readonly Block[]): string {
    const entries = order.map((_, index) => [
        String(index + 1),
        order.slice(0, index + 1).map((block) => [paperName(block), block.layer])
    ]);
    return JSON.stringify(Object.fromEntries(entries)) + '\n';
}

/**
 * Reads which blocks a published order removes first.
 * @returns them in the order of their removal, as far as the entries for fewer blocks tell it
 * @param remove how many blocks
 * @throws ArgumentError if `remove` is no whole number of at least 1
 * @throws BlockprunerError if the file is no order file, or has no order of so many blocks
 */
export async function readOrder(file: string, remove: number): Promise<Block[]> {
    checkInteger('remove', remove, { least: 1 });
    let parsed: unknown;
    try {
        parsed = JSON.parse(await fs.readFile(file, 'utf8'));
    } catch (error) {
        const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
        const why = missing ? 'there is no such file' : messageOf(error).replace(/\s+/g, ' ');
        throw new BlockprunerError('INPUT', `can't read the order ${file}: ${why}`);
    }
    const result = schema.safeParse(parsed);
    if (!result.success) {
        const issue = result.error.issues[0]!;
        throw new BlockprunerError(
            'INPUT',
            `${file} is no order file ({"1": [["mha", 25]], …}): ` +
                `at ${issue.path.join('.') || 'its top'}: ${issue.message}`
        );
    }
    const blocks = result.data[String(remove)];
    if (!blocks) {
        const most = Math.max(0, ...Object.keys(result.data).map(Number));
        throw new BlockprunerError('INPUT', `${file} has no order for ${remove} blocks: it goes up to ${most}`);
    }
    const blockOf = ([name, layer]: Entry[number]): Block => ({ kind: name === 'mha' ? 'attn' : 'ffn', layer });
    const order = blocks.map(blockOf);
    if (order.length !== remove || new SkipSet(order).size !== remove) {
        throw new BlockprunerError('INPUT', `${file}: entry "${remove}" must list ${remove} different blocks`);
    }
    const sets = Array.from(
        { length: remove },
        (_, i) => new SkipSet(result.data[String(i + 1)]?.map(blockOf) ?? order)
    );
    const removalOf = (block: Block) => sets.findIndex((set) => set.has(block));
    return order.sort((a, b) => removalOf(a) - removalOf(b));
}
