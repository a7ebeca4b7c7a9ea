// Repairs as prune and apply make them: what is written, when it isn't, and what is refused.
import fs from 'node:fs';
import path from 'node:path';
import cacache from 'cacache';
import {
    apply,
    embeddedText,
    inspect,
    loadCalibration,
    Model,
    parseBlocks,
    perplexityOf,
    prune,
    readGguf,
    repairJournalOf,
    type PruneResult
} from '../../lib/index.js';
import { readBytes, textsOf } from '../gguf_bytes';
import { fixture, randomNumbers, temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);
const options = {
    device: 'cpu',
    threads: 1,
    calibration: { file: 'embedded', samples: 4, context: 64 },
    repairTokens: 2048
} as const;
const order = parseBlocks('attn.0,attn.4,ffn.4,attn.9,ffn.11');

describe('of a model that deci hosts', () => {
    let result: PruneResult;
    beforeAll(async () => {
        result = await apply(tiny, { ...options, order, output: file('linear.gguf') });
    });

    test('puts a linear block into each gap, by default', () => {
        expect(result.repair).toEqual({
            kind: 'linear',
            correction: 0.5,
            linear: [
                { before: { kind: 'ffn', layer: 0 }, type: 'q8_0' },
                { before: { kind: 'attn', layer: 5 }, type: 'q8_0' },
                { before: { kind: 'ffn', layer: 9 }, type: 'q8_0' },
                { before: null, type: 'q8_0' }
            ],
            refitted: [],
            tokens: 2048,
            unrepaired: expect.any(Number) as number,
            seconds: expect.any(Number) as number
        });
        expect(result.parameters.dense - result.parameters.pruned).toBeGreaterThan(0);
    });

    test('gains more than half of what was lost, on text that it was not fitted to', async () => {
        const { repair, perplexity } = result as PruneResult & { repair: { kind: 'linear' } };
        const unrepaired = await apply(tiny, { ...options, order, output: file('plain.gguf'), repair: 'none' });

        expect(repair.unrepaired).toBeCloseTo(unrepaired.perplexity.pruned, 10);
        const [lost, left] = [repair.unrepaired - perplexity.dense, perplexity.pruned - perplexity.dense];
        expect(lost).toBeGreaterThan(5);
        expect(left).toBeLessThan(lost / 2);
    });

    test('the written file computes the perplexity that was told', async () => {
        const written = await Model.load(file('linear.gguf'), { device: 'cpu', threads: 1 });
        const calibration = await loadCalibration(written, options.calibration);
        expect(await perplexityOf(written, calibration)).toBeCloseTo(result.perplexity.pruned, 10);
        written.dispose();
    });

    test('its linear blocks are blocks of a kind of their own', async () => {
        const { blocks } = await inspect(file('linear.gguf'));
        expect(blocks.filter(({ kind }) => kind === 'linear')).toHaveLength(4);
        expect(blocks).toHaveLength(24 - order.length + 4);
    });

    test('every other tensor is what it was, byte for byte', () => {
        const [dense, linear] = [tiny, file('linear.gguf')].map((name) => readBytes(name).valuesOf);
        const bytesOf = (values: Record<string, Buffer>) =>
            new Set(Object.values(values).map((bytes) => bytes.toString('base64')));
        const kept = bytesOf(linear!);
        const gone = Object.entries(dense!).filter(([, bytes]) => !kept.has(bytes.toString('base64')));
        const ofRemoved = order.flatMap(({ kind, layer }) =>
            Object.keys(dense!).filter((name) => name.startsWith(`blk.${layer}.${kind}_`))
        );
        expect(gone.map(([name]) => name).sort()).toEqual(ofRemoved.sort());
    });

    test('in another type, of another size', async () => {
        const wider = await apply(tiny, { ...options, order, output: file('f16.gguf'), repairType: 'f16' });
        expect(wider.repair).toMatchObject({ kind: 'linear', linear: Array(4).fill({ type: 'f16' }) });
        expect(wider.bytes.pruned - result.bytes.pruned).toBeGreaterThan(4 * 256 * 256 * 0.9);
        expect(wider.perplexity.pruned / result.perplexity.pruned).toBeCloseTo(1, 2);
    });

    test('what is fitted anew gets that type too, and nothing else does', async () => {
        const output = file('wide.gguf');
        const { repair } = await apply(tiny, { ...options, order, output, repair: 'adjacent', repairType: 'f16' });
        const types = new Map((await readGguf(output)).tensors.map(({ name, type }) => [name, type]));
        // a linear block is written as an output projection
        const isProjection = (name: string) => /attn_output|ffn_down/.test(name);
        const wide = [...types].filter(([name, type]) => type === 'f16' && isProjection(name));
        const fillers = [...types].filter(([name, type]) => type === 'f16' && !isProjection(name));
        expect(repair).toMatchObject({ kind: 'adjacent', linear: Array(4).fill({ type: 'f16' }) });
        const { refitted } = repair as { refitted: string[] };
        expect(refitted).toHaveLength(3);
        const fillerProjections = fillers.filter(([name]) => name.endsWith('ffn_up.weight')).length;
        expect(wide).toHaveLength(refitted.length + 4 + fillerProjections);
        expect(fillers.every(([name]) => /ffn_(gate|up)|attn_(q|k|v)/.test(name))).toBe(true);
    });

    test('after a search that left gaps empty', async () => {
        const output = file('searched.gguf');
        const pruned = await prune(tiny, { ...options, remove: 2, output });
        expect(pruned.linearGaps).toBe(false);
        expect(pruned.repair).toMatchObject({ kind: 'linear', unrepaired: pruned.steps.at(-1)!.perplexity });
        expect(pruned.perplexity.pruned).toBeLessThan(pruned.steps.at(-1)!.perplexity);
    });

    test('after a search that put linear blocks into gaps', async () => {
        const output = file('counted.gguf');
        const { linearGaps, repair, steps, perplexity } = await prune(tiny, {
            ...options,
            remove: 2,
            output,
            repairSearch: true
        });
        expect(linearGaps).toBe(true);
        expect([0, 0.5]).toContain((repair as { correction: number }).correction);
        const { unrepaired } = repair as { unrepaired: number };
        expect(perplexity.pruned).toBeLessThan(unrepaired);
        // the search fits to the dense model, the repair, to more tokens, to the pruned one
        const searched = steps.at(-1)!.perplexity;
        expect(Math.abs(searched - perplexity.pruned)).toBeLessThan(0.5 * (unrepaired - perplexity.pruned));
    });

    test('after a search that counted what would be put in: the file has the ratio less', async () => {
        const found = { ...options, ratio: 0.2, method: 'sleb', verify: false } as const;
        const repaired = await prune(tiny, { ...found, output: file('ratio.gguf') });
        const plain = await prune(tiny, { ...found, output: file('plain-ratio.gguf'), repair: 'none' });
        expect(repaired.repair.kind).toBe('linear');
        expect(repaired.removed.slice(0, plain.removed.length)).toEqual(plain.removed);
        for (const { parameters } of [repaired, plain]) {
            // a layer without FFN has a filler
            expect(1 - parameters.pruned / parameters.dense).toBeGreaterThan(0.2 - 0.001);
        }
        const layer = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512 + 2 * 256;
        const before = (repaired.parameters.pruned + layer) / repaired.parameters.dense;
        expect(1 - before).toBeLessThan(0.2); // with a layer more, it is not enough
    });
});

describe.each(['adjacent', 'all'] as const)('of output projections, %s', (repair) => {
    let result: PruneResult & { repair: { kind: 'adjacent' | 'all' } };
    beforeAll(async () => {
        result = (await apply(tiny, { ...options, order, output: file(`${repair}.gguf`), repair })) as typeof result;
    });

    test('fits those of the blocks that it says', () => {
        // the first gap has no block before it
        const beforeGaps = ['blk.3.ffn_down.weight', 'blk.8.ffn_down.weight', 'blk.11.attn_output.weight'];
        const { kind, refitted } = result.repair;
        expect(kind).toBe(repair);
        expect(refitted).toEqual(repair === 'adjacent' ? beforeGaps : expect.arrayContaining(beforeGaps));
        // of all, 9 attention blocks with three input projections and an output, and 10 FFN blocks with two
        expect(refitted).toHaveLength(repair === 'adjacent' ? 3 : 9 * 4 + 10 * 3);
        expect(textsOf(file(`${repair}.gguf`), 'blockpruner.refitted')).toEqual(refitted);
    });

    // that the stock runtime computes the same was checked when it was written
    test('the written file computes the perplexity that was told, lower than without', async () => {
        const written = await Model.load(file(`${repair}.gguf`), { device: 'cpu', threads: 1 });
        const calibration = await loadCalibration(written, options.calibration);
        expect(await perplexityOf(written, calibration)).toBeCloseTo(result.perplexity.pruned, 10);
        expect(result.perplexity.pruned).toBeLessThan(result.repair.unrepaired);
        written.dispose();
    });

    test('every tensor that it does not tell is what it was, byte for byte', () => {
        const [dense, written] = [tiny, file(`${repair}.gguf`)].map((name) => readBytes(name).valuesOf);
        const kept = new Set(Object.values(written!).map((bytes) => bytes.toString('base64')));
        const changed = Object.entries(dense!).filter(([, bytes]) => !kept.has(bytes.toString('base64')));
        const ofRemoved = order.flatMap(({ kind, layer }) =>
            Object.keys(dense!).filter((name) => name.startsWith(`blk.${layer}.${kind}_`))
        );
        expect(changed.map(([name]) => name).sort()).toEqual([...ofRemoved, ...result.repair.refitted].sort());
    });
});

test('of a model whose blocks end in a norm gains too, and is verified', async () => {
    const gemma = fixture('gemma3-dense', file('gemma3.gguf'));
    const order = parseBlocks('attn.1,ffn.1');
    const { repair, perplexity } = await apply(gemma, { ...options, order, output: file('gemma.gguf') });
    expect(repair).toMatchObject({ kind: 'all', linear: [] });
    expect((repair as { refitted: string[] }).refitted).toContain('blk.0.ffn_down.weight');
    expect(perplexity.pruned).toBeLessThan((repair as { unrepaired: number }).unrepaired);
});

describe('is none', () => {
    const expectNone = async (reason: string, more: object) => {
        const wanted = { ...options, order, verify: false, output: file('none.gguf'), force: true, ...more };
        const { repair, perplexity } = await apply(tiny, wanted);
        expect(repair).toEqual({ kind: 'none', reason: expect.stringContaining(reason) as string });
        return perplexity.pruned;
    };

    test('if it is not wanted', () => expectNone('it was turned off', { repair: 'none' }));

    test('if it would make the perplexity worse', async () => {
        // what is left of the text for the fit is noise, and this block's loss is small
        const random = randomNumbers(1);
        const noise = Array.from({ length: 30_000 }, () => String.fromCharCode(33 + Math.floor(45 * (random() + 1))));
        const text = `${fs.readFileSync(embeddedText, 'utf8').slice(0, 1200)}${noise.join('')}`;
        fs.writeFileSync(file('noise.txt'), text);
        const more = { order: parseBlocks('ffn.8'), calibration: { file: file('noise.txt'), samples: 4, context: 64 } };

        const pruned = await expectNone('it would change the perplexity', more);
        expect(await expectNone('it was turned off', { ...more, repair: 'none' })).toBeCloseTo(pruned, 10);
    });

    const short = () => {
        fs.writeFileSync(file('short.txt'), fs.readFileSync(embeddedText, 'utf8').slice(0, 3000));
        return { file: file('short.txt'), samples: 4, context: 64 };
    };

    test('if there is too little text', () =>
        expectNone('and 2048 are needed', { calibration: short(), repairTokens: undefined }));

    test('but not if what it finds can not be kept', async () => {
        const output = file('unkept.gguf');
        fs.writeFileSync(repairJournalOf(output), 'mine');
        await expect(apply(tiny, { ...options, order, output })).rejects.toThrow(
            /^can't keep what the repair has found in .*unkept.gguf.repair: .*; make room, and the same command goes on/
        );
        expect(fs.existsSync(output)).toBe(false);
        expect(fs.readFileSync(repairJournalOf(output), 'utf8')).toBe('mine');
    });

    test('which is an error if it was asked for', () =>
        expect(expectNone('', { calibration: short(), repair: 'linear' })).rejects.toThrow(
            /^short\.txt is too short to fit a repair to: .* it has \d+ tokens .*, and 2048 are needed$/
        ));

    test('if the model has no projections that could be fitted, and its host no linear blocks', async () => {
        const phi = fixture('phi2-dense', file('phi2.gguf'));
        const wanted = { ...options, order: parseBlocks('attn.1,ffn.1'), output: file('phi.gguf'), verify: false };
        const { repair } = await apply(phi, wanted);
        expect(repair).toEqual({ kind: 'none', reason: expect.stringContaining('no block that could be') as string });
        await expect(apply(phi, { ...wanted, repair: 'linear', force: true })).rejects.toThrow(
            'no repair is possible: the model is written as phi2, which has no linear blocks'
        );
    });

    test('if layers were merged', async () => {
        const wanted = { ...options, method: 'laco', remove: 2, output: file('laco.gguf'), verify: false } as const;
        const { repair } = await prune(tiny, wanted);
        expect(repair).toEqual({ kind: 'none', reason: expect.stringContaining('layers are merged') as string });
    });
});

test.each([
    ['repair', 'some'],
    ['repairTokens', 0],
    ['repairTokens', 1.5],
    ['repairType', 'q9']
])('%s: %p is refused', (name, value) =>
    expect(apply(tiny, { ...options, order, output: file('no.gguf'), [name]: value })).rejects.toThrow(name)
);

test('of a file that has linear blocks fits each of them once, as any other output projection', async () => {
    const source = file('linear-once.gguf');
    await apply(tiny, { ...options, order: parseBlocks('attn.5'), output: source });
    const model = await Model.load(source, { device: 'cpu', threads: 1 });
    const text = await loadCalibration(model, options.calibration);
    const { refits } = await model.fitRepair(text, [parseBlocks('ffn.3')], { linear: true, refit: 'all' });
    model.dispose();
    const fitted = refits.map(({ tensor }) => tensor).filter((tensor) => tensor.startsWith('blk.5.attn'));
    expect(fitted).toEqual(['blk.5.attn_output.weight']);
    const { unfittedInputs } = (await inspect(source)).repair;
    expect(unfittedInputs).toEqual([{ kind: 'linear', layer: 5 }]);
});

test('deletes nothing that it has not made', async () => {
    const output = file('beside.gguf');
    const note = path.join(repairJournalOf(output), 'notes.txt');
    fs.mkdirSync(repairJournalOf(output));
    fs.writeFileSync(note, 'mine');
    await apply(tiny, { ...options, order: parseBlocks('attn.5'), output, verify: false });
    expect(fs.readdirSync(repairJournalOf(output))).toEqual(['notes.txt']);

    const other = file('other.gguf');
    fs.writeFileSync(repairJournalOf(other), 'mine');
    await apply(tiny, { ...options, order: parseBlocks('attn.5'), output: other, repair: 'none', verify: false });
    expect(fs.readFileSync(repairJournalOf(other), 'utf8')).toBe('mine');
});

test('is stopped by its signal, and goes on from what it had found, to the same bytes', async () => {
    const outputs = fs.mkdtempSync(file('outputs-'));
    const output = path.join(outputs, 'new.gguf');
    const wanted = { ...options, order, repair: 'all', output } as const;
    const stop = new AbortController();
    const stopped = apply(tiny, {
        ...wanted,
        signal: stop.signal,
        onProgress: (phase, done, total) => phase === 'repair' && done > total / 3 && stop.abort(new Error('enough'))
    });
    await expect(stopped).rejects.toThrow('enough');
    expect(fs.readdirSync(outputs)).toEqual(['new.gguf.repair']);
    const found = (await cacache.ls(repairJournalOf(output))) as Record<string, unknown>;
    expect(Object.keys(found).length).toBeGreaterThan(5);

    await apply(tiny, wanted);
    expect(fs.readdirSync(outputs)).toEqual(['new.gguf']);
    expect(fs.readFileSync(output).equals(fs.readFileSync(file('all.gguf')))).toBe(true);
});
