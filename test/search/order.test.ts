// Order files, ours and those that the paper's authors have published.
import fs from 'node:fs';
import path from 'node:path';
import { apply, formatOrder, parseBlocks, readGguf, readOrder } from '../../lib/index.js';
import { formatBlock } from '../../lib/runtime/blocks.js';
import { randomModel, temporaryFolder } from '../models';

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
        expect(JSON.parse(text)).toEqual({
            1: [['mha', 25]],
            2: [
                ['mha', 25],
                ['mlp', 3]
            ],
            3: [
                ['mha', 25],
                ['mlp', 3],
                ['mha', 0]
            ]
        });
        expect(await readOrder(write(text), 3)).toEqual(order);
        expect(await readOrder(write(text), 1)).toEqual(order.slice(0, 1));
    });

    test("of the paper's repository tell the order too, and apply to a model of such blocks", async () => {
        // ppls/Llama-2-7b_mix_alpaca_ns_64_del_order_list.json of github.com/MrGGLS/BlockPruner
        const published =
            'mha.25,mha.27,mha.24,mha.23,mha.28,mha.29,mha.8,mlp.7,mha.19,mha.30,' +
            'mlp.22,mha.21,mlp.27,mha.18,mlp.21,mlp.11,mha.12,mha.14,mlp.14,mlp.24';
        const blocks = published.split(',').map((block) => block.split('.') as [string, string]);
        const entries = blocks.map((_, i) => [
            i + 1,
            blocks
                .slice(0, i + 1)
                .map(([kind, layer]) => [kind, Number(layer)] as const)
                .sort(([, a], [, b]) => a - b)
        ]);
        const file = write(JSON.stringify(Object.fromEntries(entries)));
        const removed = await readOrder(file, 20);
        expect(removed).toEqual(parseBlocks(published));

        const llama = await randomModel('llama', path.join(folder, 'llama.gguf'), { layers: 32 });
        const output = path.join(folder, 'pruned.gguf');
        const calibration = { file: 'embedded', samples: 1, context: 32 };
        const { architecture, ...result } = await apply(llama, {
            ...{ order: removed, output, calibration, device: 'cpu', threads: 1, repair: 'none' }
        });
        expect([architecture, result.host, result.removed]).toEqual(['llama', 'deci', removed]);
        const { metadata } = await readGguf(output);
        expect(metadata['blockpruner.removed']).toEqual(removed.map(formatBlock));
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
        await expect(readOrder(path.join(folder, 'missing.json'), 1)).rejects.toThrow(
            /can't read the order .*missing\.json: there is no such file/
        );
    });
});
