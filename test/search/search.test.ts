// The search on made-up perplexities, and the order files.
import fs from 'node:fs';
import path from 'node:path';
import { formatBlock, formatOrder, parseBlocks, readOrder, searchOrder, type Block, type SearchOptions } from '../../lib/index.js';
import { temporaryFolder } from '../models';

/** A search in which a block's removal multiplies the perplexity by its cost; the dense model has 10. */
async function search(costs: Record<string, number>, options: Partial<SearchOptions> = {}) {
    const calls: string[] = [];
    const perplexity = (removed: readonly Block[]) => removed.reduce((product, block) => product * costs[formatBlock(block)]!, 10);
    const names = (blocks: readonly Block[]) => blocks.map(formatBlock).join('+');
    const result = await searchOrder({
        setCurrent: (removed) => {
            calls.push(`(${names(removed)})`);
            return Promise.resolve(perplexity(removed));
        },
        withoutOneMore: (removed, candidate) => {
            calls.push(names([...removed, candidate]));
            return Promise.resolve(perplexity([...removed, candidate]));
        }
    }, { candidates: parseBlocks(Object.keys(costs).join()), done: () => false, ...options });
    return { ...result, calls, order: names(result.steps.map(({ removed }) => removed)) };
}

describe('searchOrder', () => {
    test('walks attention blocks by layer, then FFN blocks, and starts each step from what is left', async () => {
        const { calls, dense, steps, order } = await search({ 'attn.0': 4, 'ffn.0': 2, 'attn.1': 3, 'ffn.1': 5, 'attn.10': 6, 'attn.2': 7 }, { done: (removed) => removed.length === 2 });
        expect(calls).toEqual([
            '()', 'attn.0', 'attn.1', 'attn.2', 'attn.10', 'ffn.0', 'ffn.1',
            '(ffn.0)', 'ffn.0+attn.0', 'ffn.0+attn.1', 'ffn.0+attn.2', 'ffn.0+attn.10', 'ffn.0+ffn.1'
        ]);
        expect(order).toBe('ffn.0+attn.1');
        expect(dense).toBe(10);
        expect(steps.map(({ perplexity, evaluations }) => [perplexity, evaluations])).toEqual([[20, 6], [60, 5]]);
    });

    test('removes the earlier one of equals', async () => {
        expect((await search({ 'ffn.0': 2, 'ffn.1': 2, 'attn.1': 2, 'attn.0': 2 })).order).toBe('attn.0+attn.1+ffn.0+ffn.1');
    });

    test('removes the block that makes the model better', async () => {
        expect((await search({ 'attn.0': 1.1, 'ffn.0': 0.9 })).order).toBe('ffn.0+attn.0');
    });

    test('never removes a block without which the perplexity is no number', async () => {
        const { order, steps } = await search({ 'attn.0': NaN, 'attn.1': 2 }, { done: (removed) => removed.length === 1 });
        expect([order, steps[0]!.perplexity]).toEqual(['attn.1', 20]);
    });

    test('reports a step as a block without anything else', async () => {
        const { steps } = await search({}, { candidates: [{ kind: 'attn', layer: 3, parameters: 5 } as Block], done: () => true });
        expect(steps).toEqual([]);
        const [step] = (await search({ 'attn.3': 2 }, { candidates: [{ kind: 'attn', layer: 3, parameters: 5 } as Block] })).steps;
        expect(step!.removed).toEqual({ kind: 'attn', layer: 3 });
    });

    test('stops before the limit is passed', async () => {
        const limit = (dense: number) => 3 * dense;
        expect((await search({ 'attn.0': 2, 'ffn.0': 1.5, 'ffn.1': 1.2 }, { limit })).order).toBe('ffn.1+ffn.0');
        expect((await search({ 'attn.0': 3, 'ffn.0': 1 }, { limit })).order).toBe('ffn.0+attn.0'); // just at it
        expect((await search({ 'attn.0': 3.1 }, { limit })).order).toBe('');
    });

    test('tells its progress', async () => {
        const told: unknown[] = [];
        await search({ 'attn.0': 2, 'ffn.0': 3 }, {
            onStart: (dense) => told.push(dense),
            onEvaluation: (...counts) => told.push(counts),
            onStep: ({ removed }, number) => told.push(`${number}. ${formatBlock(removed)}`)
        });
        expect(told).toEqual([10, [1, 1, 2], [1, 2, 2], '1. attn.0', [2, 1, 1], '2. ffn.0']);
    });

    test('refuses a model whose perplexity is no number', async () => {
        const evaluator = { setCurrent: () => Promise.resolve(NaN), withoutOneMore: () => Promise.resolve(1) };
        await expect(searchOrder(evaluator, { candidates: parseBlocks('attn.0'), done: () => false })).rejects.toThrow('perplexity on the calibration text is NaN');
    });
});

describe('order files', () => {
    const folder = temporaryFolder();
    const write = (text: string) => {
        const file = path.join(folder, 'order.json');
        fs.writeFileSync(file, text);
        return file;
    };
    const order = parseBlocks('attn.25,ffn.3,attn.0');

    test("are written in the paper's schema and read back", async () => {
        const text = formatOrder(order);
        expect(JSON.parse(text)).toEqual({ 1: [['mha', 25]], 2: [['mha', 25], ['mlp', 3]], 3: [['mha', 25], ['mlp', 3], ['mha', 0]] });
        expect(await readOrder(write(text), 3)).toEqual(order);
        expect(await readOrder(write(text), 1)).toEqual(order.slice(0, 1));
    });

    test.each([
        ['not JSON', '{"1": ', 1, /can't read the order .*order\.json/],
        ['a list', '[["mha", 1]]', 1, 'order.json is no order file'],
        ['another name', '{"1": [["attn", 1]]}', 1, 'order.json is no order file'],
        ['a layer below 0', '{"1": [["mha", -1]]}', 1, 'order.json is no order file'],
        ['half a layer', '{"1": [["mha", 1.5]]}', 1, 'order.json is no order file'],
        ['a text as layer', '{"1": [["mha", "1"]]}', 1, 'order.json is no order file'],
        ['no number as key', '{"one": [["mha", 1]]}', 1, 'order.json is no order file'],
        ['too few blocks', formatOrder(order), 4, 'has no order for 4 blocks: it goes up to 3'],
        ['nothing', '{}', 1, 'has no order for 1 blocks: it goes up to 0'],
        ['an entry that is too short', '{"2": [["mha", 1]]}', 2, 'entry "2" must list 2 different blocks'],
        ['a block twice', '{"2": [["mha", 1], ["mha", 1]]}', 2, 'entry "2" must list 2 different blocks']
    ])('with %s are refused', async (_, text, remove, says) => {
        await expect(readOrder(write(text), remove)).rejects.toThrow(says);
        await expect(readOrder(write(text), remove)).rejects.not.toThrow('\n');
    });

    test('that are missing are refused', async () => {
        await expect(readOrder(path.join(folder, 'missing.json'), 1)).rejects.toThrow(/can't read the order .*missing\.json: there is no such file/);
    });
});
