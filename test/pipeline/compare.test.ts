// The comparison of methods: what it reports against single evaluations, and its tables.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import {
    compare,
    comparisonCsv,
    comparisonTable,
    comparisonText,
    loadCalibration,
    Model,
    perplexityOf,
    prune,
    scoreTask,
    textPerplexity,
    type Block,
    type BlockKind,
    type ComparedModel,
    type Comparison,
    type Task
} from '../../lib/index.js';
import { partialIn } from '../../lib/output.js';
import { expectRefused, onCpu, run, start } from '../cli/run';
import { quantize, temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const text = path.resolve(__dirname, '..', '..', 'LICENSE');
const task: Task = {
    name: 'ends',
    normalized: true,
    questions: Array.from({ length: 6 }, (_, i) => ({
        choices: [' the sea.', ' a zqx.', ' the old house.'].map((ending) => ({
            context: `The ${i} men went to`,
            ending
        })),
        answer: i % 3
    }))
};
const calibration = { file: 'embedded', samples: 2, context: 64 };
/** Without repairs, other types and answers, which have tests of their own. */
const plain = { repair: 'none', quantize: [], answers: false } as const;
const output = path.join(folder, 'first');
let comparison: Comparison;

beforeAll(async () => {
    comparison = await compare(tiny, {
        output,
        ratios: [0.05, 0.25],
        methods: ['blockpruner', 'shortgpt', 'random'],
        seeds: 2,
        tasks: [task],
        text,
        calibration,
        ...plain,
        device: 'cpu',
        threads: 1
    });
});

test('there is a result for each method at each ratio', () => {
    expect(comparison.pruned.map(({ method, seed, ratio }) => [ratio, method, seed])).toEqual(
        [0.05, 0.25].flatMap((ratio) => [
            [ratio, 'blockpruner', null],
            [ratio, 'shortgpt', null],
            [ratio, 'random', 0],
            [ratio, 'random', 1]
        ])
    );
    const [first, second] = comparison.pruned.filter(({ method, ratio }) => method === 'random' && ratio === 0.25);
    expect(first!.removed).not.toEqual(second!.removed);
});

test.each([
    ['blockpruner', null],
    ['shortgpt', null],
    ['random', 0],
    ['random', 1]
] as const)('%s (seed %s) removes what prune does, and a higher ratio more of the same', async (method, seed) => {
    const results = comparison.pruned.filter((one) => one.method === method && one.seed === seed);
    const [low, high] = results as [ComparedModel, ComparedModel];
    expect(results).toHaveLength(2);
    expect(high.removed.length).toBeGreaterThan(low.removed.length);
    expect(high.removed.slice(0, low.removed.length)).toEqual(low.removed);
    for (const { ratio, removed, removedShare } of results) {
        const pruned = await prune(tiny, {
            output: path.join(folder, 'pruned.gguf'),
            force: true,
            verify: false,
            repair: 'none',
            method,
            methodSeed: seed ?? undefined,
            ratio,
            calibration,
            device: 'cpu',
            threads: 1
        });
        expect(removed).toEqual(pruned.removed);
        const share = (gone: readonly Block[]) =>
            pruned.blocks
                .filter((block) => gone.some(({ kind, layer }) => block.kind === kind && block.layer === layer))
                .reduce((sum, { parameters }) => sum + parameters, 0) / pruned.parameters.dense;
        expect(removedShare).toBeCloseTo(share(removed), 12);
        expect(removedShare).toBeGreaterThanOrEqual(ratio);
        expect(share(removed.slice(0, -pruned.steps.at(-1)!.removed.length))).toBeLessThan(ratio);
    }
});

test('shortgpt removes whole layers, and random does not', () => {
    const compared = comparison.pruned.filter(({ method }) => method !== 'blockpruner');
    const areLayers = compared.map(({ removed }) => {
        const layersOf = (wanted: BlockKind) => removed.filter(({ kind }) => kind === wanted).map(({ layer }) => layer);
        return String(layersOf('attn')) === String(layersOf('ffn'));
    });
    expect(areLayers).toEqual(compared.map(({ method }) => method === 'shortgpt'));
});

test('its figures are those of single evaluations', async () => {
    const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const sequences = await loadCalibration(model, calibration);
    for (const { removed, ...found } of [{ ...comparison.dense, removed: [] }, ...comparison.pruned]) {
        expect(found.calibration).toBeCloseTo(await perplexityOf(model, sequences, { skip: removed }), 6);
        const { perplexity, dense } = await textPerplexity(model, text, { skip: removed, context: 64, dense: model });
        expect(found.text!.perplexity).toBeCloseTo(perplexity, 6);
        expect(found.text).toEqual({
            perplexity: found.text!.perplexity,
            divergence: dense!.divergence,
            sameTop: dense!.sameTop
        });
        expect(found.text!.divergence > 0.01).toBe(removed.length > 0);
        expect(found.tasks).toEqual([await scoreTask(model, task, { skip: removed })]);
    }
    model.dispose();
});

test('the table has a row for each, with the mean of the random ones, and marks the best', () => {
    const lines = comparisonTable(comparison).trimEnd().split('\n');
    expect(lines[0]).toBe(
        '| Ratio | Removed | Method | Perplexity, calibration | Perplexity, LICENSE ' +
            '| KL divergence | Equal top-1 | ends | Size | KV cache a token |'
    );
    expect(lines.slice(2).map((line) => line.split(' | ')[2])).toEqual([
        'dense',
        ...['blockpruner', 'shortgpt', 'random (mean of 2)'],
        ...['blockpruner', 'shortgpt', 'random (mean of 2)']
    ]);
    // of each ratio, the best of each column, and nothing else, is bold
    const cells = lines.slice(2).map((line) => line.split(' | ').slice(3, -2)); // all of a ratio are to be as large
    const number = (text: string) => Number(/[\d.]+/.exec(text)![0]);
    expect(cells[0]!.filter((text) => text.includes('**'))).toEqual([]);
    for (const ofRatio of [cells.slice(1, 4), cells.slice(4)]) {
        ofRatio[0]!.forEach((_, column) => {
            const texts = ofRatio.map((row) => row[column]!);
            const best = (column < 3 ? Math.min : Math.max)(...texts.map(number));
            const bold = texts.filter((text) => text.includes('**'));
            expect(bold.length).toBeGreaterThan(0);
            expect(bold.map(number)).toEqual(bold.map(() => best));
        });
    }
    // on the text that it searched by, blockpruner is the best
    expect(lines[3]).toMatch(/^\| 0\.05 \| [\d.]+ % \| blockpruner \| \*\*[\d.]+\*\* \|/);
    const csv = comparisonCsv(comparison)
        .trimEnd()
        .split('\n')
        .map((line) => line.split(','));
    expect(csv[0]).toEqual([
        'method',
        'repair',
        'quantized',
        'seeds',
        'ratio',
        'removed',
        'calibration_perplexity',
        'text_perplexity',
        'text_kl_divergence',
        'text_same_top',
        'ends',
        'ends_stderr',
        'answers',
        'answers_stderr',
        'bytes',
        'cache_bytes_per_token',
        'prompt_speed',
        'writing_speed',
        'draft_acceptance',
        'draft_speed_expected',
        'draft_speed_measured'
    ]);
    expect(csv).toHaveLength(8);
    expect(csv.every((fields) => fields.length === 21)).toBe(true);
    const calibrated = ({ method, ratio }: Pick<ComparedModel, 'method' | 'ratio'>) => {
        const same = comparison.pruned.filter((one) => one.method === method && one.ratio === ratio);
        return same.reduce((sum, one) => sum + one.calibration, 0) / same.length;
    };
    const rows = comparison.pruned.filter(({ seed }) => seed !== 1); // seeds 0 and 1 share a row
    expect(csv.slice(1).map((fields) => [fields[0], Number(fields[4]), Number(fields[6])])).toEqual([
        ['dense', 0, comparison.dense.calibration],
        ...rows.map((one) => [one.method, one.ratio, calibrated(one)])
    ]);
});

describe('beside what is only pruned', () => {
    const output = path.join(folder, 'beside');
    const options = {
        output,
        ratios: [0.2],
        methods: ['sleb', 'laco'],
        // what the model would write itself depends on how the processor rounds, and with it whether a repair helps
        calibration: { file: 'embedded', samples: 4, context: 64 },
        repairTokens: 4096,
        quantize: ['Q4_0', 'Q8_0'],
        answers: false,
        device: 'cpu',
        threads: 1
    } as const;
    const seen: string[] = [];
    let compared: Comparison;

    beforeAll(async () => {
        compared = await compare(tiny, { ...options, onProgress: (what) => seen.push(what) });
    });

    test('there is what prune makes of it, repaired', async () => {
        const pruned = await prune(tiny, {
            output: path.join(folder, 'repaired.gguf'),
            method: 'sleb',
            ratio: 0.2,
            calibration: options.calibration,
            repairTokens: options.repairTokens,
            verify: false,
            device: 'cpu',
            threads: 1
        });
        expect(pruned.repair.kind).toBe('linear');
        const [plainly, repaired] = compared.pruned.filter(({ method }) => method === 'sleb');
        expect([plainly!.repair, repaired!.repair]).toEqual(['none', 'linear']);
        expect(repaired!.removed).toEqual(pruned.removed);
        expect(pruned.removed.slice(0, plainly!.removed.length)).toEqual(plainly!.removed);
        expect(repaired!.calibration).toBeCloseTo(pruned.perplexity.pruned, 3);
        const { parameters } = pruned;
        // layers that need a filler have a few parameters that aren't the model's
        expect(Math.abs(repaired!.removedShare - (1 - parameters.pruned / parameters.dense))).toBeLessThan(1e-3);
        // both reach the ratio, the repaired one with what is put in
        const put = pruned.repair.kind === 'linear' ? pruned.repair.linear.length * 256 ** 2 : NaN;
        const gone = pruned.blocks
            .filter(({ kind, layer }) => pruned.removed.some((one) => one.kind === kind && one.layer === layer))
            .reduce((sum, block) => sum + block.parameters, 0);
        expect(repaired!.removedShare).toBeCloseTo((gone - put) / parameters.dense, 9);
        expect(Math.min(plainly!.removedShare, repaired!.removedShare)).toBeGreaterThanOrEqual(0.2);
        expect(Math.abs(repaired!.cost.bytes / pruned.bytes.pruned - 1)).toBeLessThan(1e-3);
        // layers that were merged can't be repaired
        expect(compared.pruned.filter(({ method }) => method === 'laco').map(({ repair }) => repair)).toEqual(['none']);
    });

    test('there is the model as it is in other types', async () => {
        expect(compared.quantized.map(({ type }) => type)).toEqual(['Q8_0', 'Q4_0']); // large to small
        const file = await quantize(tiny, path.join(folder, 'q4.gguf'), 'Q4_0');
        const model = await Model.load(file, { device: 'cpu', threads: 1 });
        const written = await Model.load(tiny, { device: 'cpu', threads: 1 });
        const sequences = await loadCalibration(written, options.calibration); // the text of the dense model
        const [, found] = compared.quantized;
        expect(found!.calibration).toBeCloseTo(await perplexityOf(model, sequences), 6);
        expect(found!.cost.bytes).toBe(fs.statSync(file).size);
        model.dispose();
        written.dispose();
    });

    test('there is what each costs', () => {
        const { dense, quantized, pruned } = compared;
        const cacheOf = (attention: number) => attention * 2 * 4 * 32 * 2; // K and V of 4 heads of 32 values, in F16
        expect(dense.cost).toEqual({
            bytes: fs.statSync(tiny).size,
            cacheBytes: cacheOf(12),
            speed: null,
            draft: null
        });
        expect(quantized.map(({ cost }) => cost.cacheBytes)).toEqual([cacheOf(12), cacheOf(12)]);
        const gone = pruned[0]!.removed.filter(({ kind }) => kind === 'attn').length;
        expect(gone).toBeGreaterThan(0);
        expect(pruned[0]!.cost.cacheBytes).toBe(cacheOf(12 - gone));
    });

    test('the text says which to take', () => {
        const text = comparisonText(compared);
        expect(text.startsWith(comparisonTable(compared))).toBe(true);
        expect(fs.readFileSync(path.join(output, 'table.md'), 'utf8')).toBe(text);
        expect(text).toContain('| dense, Q4_0 |');
        expect(text).toContain('| sleb + linear |');
        expect(text).toMatch(
            /\n\nAt 20 %, sleb \+ linear \([\d.]+ MiB, perplexity [\d.]+\) is the best of what is pruned\. /
        );

        // the one that is no larger decides, by its perplexity
        const repaired = compared.pruned.find(({ repair }) => repair === 'linear')!;
        const withRival = (calibration: number, bytes: number): string =>
            comparisonText({
                ...compared,
                quantized: [{ ...compared.quantized[1]!, calibration, cost: { ...repaired.cost, bytes } }]
            });
        const { calibration, cost } = repaired;
        expect(withRival(calibration - 1, cost.bytes)).toMatch(/If it is bytes that must go, take dense, Q4_0 \(/);
        expect(withRival(calibration + 1, cost.bytes)).toContain('Take it where bytes must go: dense, Q4_0');
        expect(withRival(calibration - 1, cost.bytes + 1)).toContain('None of the quantized models is as small.');
    });

    test('what is there is not made again', async () => {
        seen.length = 0;
        const same = await compare(tiny, { ...options, resume: true, onProgress: (what) => seen.push(what) });
        expect({ ...same, seconds: 0 }).toEqual({ ...compared, seconds: 0 });
        expect(seen).toEqual(['the model as it is']);
    });

    test('auto takes the first of the usual types that is small enough', async () => {
        const auto = { ...options, methods: [], quantize: 'auto' } as const;
        const { quantized } = await compare(tiny, { ...auto, output: path.join(folder, 'auto'), ratios: [0.1, 0.4] });
        const share = quantized.map(({ type, cost }) => [type, cost.bytes / fs.statSync(tiny).size] as const);
        expect(share.map(([type]) => type)).toEqual(['Q6_K', 'Q4_K_M']);
        expect(share[0]![1]).toBeLessThan(0.9);
        expect(share[1]![1]).toBeLessThan(0.6);
    });

    test('speeds are told as multiples of that of the model as it is', async () => {
        const timed = { ...options, methods: [], quantize: ['Q4_0'], speed: true, draft: true } as const;
        const output = path.join(folder, 'timed');
        const { dense, quantized } = await compare(tiny, { ...timed, output });
        expect(dense.cost.speed).toEqual({ prompt: 1, generation: 1 });
        const { prompt, generation } = quantized[0]!.cost.speed!;
        expect(Math.min(prompt, generation)).toBeGreaterThan(0);
        const table = fs.readFileSync(path.join(output, 'table.md'), 'utf8');
        expect(table).toContain(`| ${prompt.toFixed(2)} × | ${generation.toFixed(2)} × |`);
        // as drafts: itself, which guesses all but what rounding decides, and a copy that is nearly it
        expect(dense.cost.draft!.acceptance).toBeGreaterThan(0.97);
        const { acceptance, expected, measured } = quantized[0]!.cost.draft!;
        expect(acceptance).toBeGreaterThan(0.3);
        expect(acceptance).toBeLessThan(1);
        expect(table).toContain(
            `| ${(100 * acceptance).toFixed(1)} | ${expected.toFixed(2)} × | ${measured.toFixed(2)} × |`
        );
    });
});

test('goes on with the results of a folder', async () => {
    const options = {
        output,
        methods: ['blockpruner', 'shortgpt', 'random'] as const,
        seeds: 2,
        tasks: [task],
        text,
        calibration,
        ...plain,
        device: 'cpu' as const,
        threads: 1
    };
    const before = fs.readFileSync(path.join(output, 'results.json'), 'utf8');
    await expect(compare(tiny, { ...options, ratios: [0.05] })).rejects.toThrow(
        "isn't empty: go on with what is there by `resume: true`"
    );

    const seen: string[] = [];
    const onProgress = (what: string) => seen.push(what);
    const same = await compare(tiny, { ...options, ratios: [0.05, 0.25], resume: true, onProgress });
    expect([seen, same.pruned]).toEqual([['the model as it is'], comparison.pruned]);

    // an evaluation that is missing, a method that is new
    fs.writeFileSync(
        path.join(output, 'results.json'),
        JSON.stringify({ ...(JSON.parse(before) as Comparison), pruned: comparison.pruned.slice(0, -1) })
    );
    const more = await compare(tiny, {
        ...options,
        ratios: [0.05, 0.25],
        methods: ['random', 'blockpruner-ffn'],
        resume: true,
        onProgress
    });
    expect(seen.slice(2)).toEqual([
        'random-1 at 0.25: perplexity and tasks',
        'blockpruner-ffn: what goes',
        ...[0.05, 0.25].map((ratio) => `blockpruner-ffn at ${ratio}: perplexity and tasks`)
    ]);
    expect(more.pruned.filter(({ method }) => method !== 'blockpruner-ffn')).toEqual(comparison.pruned);
    const ofFfn = more.pruned.filter(({ method }) => method === 'blockpruner-ffn');
    expect(ofFfn.map(({ ratio, removed }) => [ratio, ...new Set(removed.map(({ kind }) => kind))])).toEqual([
        [0.05, 'ffn'],
        [0.25, 'ffn']
    ]);

    // what was measured with other tasks is only given up if that is asked for; the searches hold
    const kept = fs.readFileSync(path.join(output, 'results.json'), 'utf8');
    const other = {
        ...options,
        ratios: [0.05],
        tasks: [],
        methods: ['blockpruner' as const],
        resume: true,
        onProgress
    };
    await expect(compare(tiny, other)).rejects.toThrow(
        /with different tasks \(ends, .* now none\): give the same, or measure all of them anew by `remeasure: true`/
    );
    expect(fs.readFileSync(path.join(output, 'results.json'), 'utf8')).toBe(kept);
    seen.length = 0;
    const anew = await compare(tiny, { ...other, remeasure: true });
    expect(seen).toEqual(['the model as it is', 'blockpruner at 0.05: perplexity and tasks']);
    expect(anew.pruned).toEqual([{ ...comparison.pruned[0], tasks: [] }]);
    expect(anew.searches).toEqual(more.searches);
    // where there are none, their limit says nothing
    expect((await compare(tiny, { ...other, limit: 3 })).pruned).toEqual(anew.pruned);

    // a perplexity that overflowed is null in JSON
    fs.writeFileSync(
        path.join(output, 'results.json'),
        JSON.stringify({ ...anew, pruned: anew.pruned.map((one) => ({ ...one, calibration: Infinity })) })
    );
    const broken = await compare(tiny, {
        ...options,
        ratios: [0.05],
        tasks: [],
        methods: ['blockpruner'],
        resume: true
    });
    expect(broken.pruned[0]!.calibration).toBe(Infinity);
    expect(comparisonTable(broken)).toMatch(/blockpruner \| ∞ \|/);

    await expect(
        compare(tiny, {
            ...options,
            ratios: [0.05],
            calibration: { file: 'embedded', samples: 3, context: 64 },
            resume: true
        })
    ).rejects.toThrow(/are of searches with another calibration \(2 × 64 tokens.*now 3 × 64 tokens/);
    fs.writeFileSync(path.join(output, 'results.json'), '{}');
    await expect(compare(tiny, { ...options, ratios: [0.05], resume: true })).rejects.toThrow(
        'results.json holds no results of a comparison'
    );
});

test('a higher ratio goes on with the search of a lower one', async () => {
    const output = path.join(folder, 'higher');
    const options = { output, methods: ['sleb'] as const, calibration, ...plain, device: 'cpu' as const, threads: 1 };
    const {
        searches: [low]
    } = await compare(tiny, { ...options, ratios: [0.05] });
    const journal = () => fs.readFileSync(path.join(output, 'sleb.journal'), 'utf8');
    const before = journal();
    const dead = spawnSync(process.execPath, ['--version']).pid;
    fs.writeFileSync(partialIn(output, '.gguf').replace(`-${process.pid}-`, `-${dead}-`), '');
    const {
        searches: [high]
    } = await compare(tiny, { ...options, ratios: [0.3], resume: true });
    expect(low!.steps.length).toBeGreaterThan(0);
    expect(high!.steps.length).toBeGreaterThan(low!.steps.length);
    expect(high!.steps.slice(0, low!.steps.length).map(({ removed }) => removed)).toEqual(
        low!.steps.map(({ removed }) => removed)
    );
    expect(journal().startsWith(before)).toBe(true);
    const evaluated = journal()
        .trimEnd()
        .split('\n')
        .slice(1)
        .map((line) => /"skip":"[^"]*","sequence":\d+/.exec(line)![0]);
    expect(new Set(evaluated).size).toBe(evaluated.length); // none twice
    expect(fs.readdirSync(output).sort()).toEqual([
        'report.html',
        'results.json',
        'sleb.journal',
        'table.csv',
        'table.md'
    ]);
});

test("a method that can't is passed over", async () => {
    const seen: string[] = [];
    const { pruned } = await compare(tiny, {
        output: path.join(folder, 'some'),
        ratios: [0.7, 0.75],
        methods: ['laco', 'blockpruner-attn', 'shortgpt'],
        calibration: { file: 'embedded', samples: 1, context: 32 },
        ...plain,
        device: 'cpu',
        threads: 1,
        onProgress: (what) => seen.push(what)
    });
    expect(pruned.map(({ method, ratio }) => [method, ratio])).toEqual([
        ['shortgpt', 0.7],
        ['shortgpt', 0.75]
    ]);
    expect(seen).toEqual([
        'the model as it is',
        'laco at 0.7',
        expect.stringContaining("LaCo can't remove so much"),
        'laco at 0.75',
        expect.stringContaining("LaCo can't remove so much"),
        "blockpruner-attn can't remove 0.7",
        "blockpruner-attn can't remove 0.75",
        'shortgpt: what goes',
        'shortgpt at 0.7: perplexity and tasks',
        'shortgpt at 0.75: perplexity and tasks'
    ]);
});

// Windows has no SIGINT for other processes
(process.platform === 'win32' ? test.skip : test)('Ctrl-C says where the results are', async () => {
    const output = path.join(folder, 'stopped');
    const comparing = start(
        'compare',
        tiny,
        '--ratios',
        '0.5',
        '--methods',
        'blockpruner',
        '--search',
        'exact',
        '--calibration',
        'embedded',
        '--samples',
        '8',
        '--context',
        '256',
        ...onCpu,
        '-o',
        output
    );
    while (!comparing.stderr().includes('what goes')) {
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    comparing.interrupt();
    const { code, stderr } = await comparing.ended;
    expect([code, stderr.trimEnd().split('\n').at(-1)]).toEqual([
        130,
        `blockpruner: stopped: the results so far are in ${output}; the same with --resume goes on`
    ]);
    expect(fs.readdirSync(output)).toContain('results.json');
});

test.each<[string, Partial<Parameters<typeof compare>[1]>, string]>([
    ['limit', { limit: 0 }, 'limit must be a whole number of at least 1, not 0'],
    ['seeds', { seeds: 0.5 }, 'seeds must be a whole number of at least 1'],
    ['textSamples', { textSamples: 0 }, 'textSamples must be a whole number'],
    ['repairTokens', { repairTokens: 0 }, 'repairTokens must be a whole number of at least 1'],
    ['keepBytes', { keepBytes: -1 }, 'keepBytes must be a number of at least 0']
])('%s out of its range', async (_, wrong, says) => {
    await expect(
        compare(tiny, { output: path.join(folder, 'never'), ratios: [0.1], calibration, device: 'cpu', ...wrong })
    ).rejects.toThrow(says);
    expect(fs.existsSync(path.join(folder, 'never'))).toBe(false);
});

test('the command writes table, CSV, JSON and report into a new folder', async () => {
    const output = path.join(folder, 'comparison');
    const args = [
        'compare',
        tiny,
        '--ratios',
        '0.05',
        '--methods',
        'shortgpt,block-influence',
        '--repair',
        'none',
        '--quantize',
        'none',
        '--no-answers',
        '--calibration',
        'embedded',
        '--samples',
        '2',
        '--context',
        '64',
        '--device',
        'cpu',
        '--threads',
        '1',
        '-o',
        output
    ];
    const { code, stdout } = await run(...args);
    expect(code).toBe(0);
    expect(stdout).toContain('| 0.05 | ');
    expect(fs.readdirSync(output).sort()).toEqual([
        'block-influence.journal',
        'report.html',
        'results.json',
        'shortgpt.journal',
        'table.csv',
        'table.md'
    ]);
    expect(
        (JSON.parse(fs.readFileSync(path.join(output, 'results.json'), 'utf8')) as Comparison).pruned.map(
            ({ method }) => method
        )
    ).toEqual(['shortgpt', 'block-influence']);
    expect(fs.readFileSync(path.join(output, 'table.md'), 'utf8')).toBe(stdout.replace(/\n\n$/, '\n'));

    const foreign = path.join(folder, 'foreign');
    fs.mkdirSync(foreign);
    fs.writeFileSync(path.join(foreign, 'table.md'), 'mine');
    for (const [options, says] of [
        [['-o', output], "isn't empty: go on with what is there by --resume"],
        [['-o', output, '--resume', '--samples', '3'], 'another calibration'],
        [['-o', foreign], 'foreign holds other files: choose another name'],
        [['-o', foreign, '--resume'], 'foreign holds other files: choose another name'],
        [['-o', path.join(foreign, 'table.md'), '--resume'], 'table.md is no folder'],
        [['-o', ''], 'the output has no name'],
        [['-o', path.join(folder, 'new'), '--ratios', '0.1,2'], "not '0.1,2'"],
        [['-o', path.join(folder, 'new'), '--methods', 'best'], "there is no method 'best'"],
        [['-o', path.join(folder, 'new'), '--quantize', 'Q8_0,Q9'], '--quantize must be one of Q8_0, Q6_K'],
        [['-o', path.join(folder, 'missing', 'new')], 'there is no such folder'],
        [
            ['-o', path.join(folder, 'new'), '--task', `piqa=${path.join(folder, 'none.jsonl')}`],
            'there is no such file'
        ],
        [['-o', path.join(folder, 'new'), '--samples', '0'], '--samples']
    ] as const) {
        await expectRefused(folder, [...args.slice(0, -2), ...options], says);
    }
    expect(fs.readFileSync(path.join(foreign, 'table.md'), 'utf8')).toBe('mine');
});
