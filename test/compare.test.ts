// The comparison of methods: what it reports against single evaluations, and its tables.
import fs from 'node:fs';
import path from 'node:path';
import { compare, comparisonCsv, comparisonTable, loadCalibration, Model, perplexityOf, scoreTask, textPerplexity, type Comparison, type Task } from '../lib/index.js';
import { run } from './cli/run';
import { temporaryFolder, tiny } from './models';

const folder = temporaryFolder();
const text = path.resolve(__dirname, '..', 'LICENSE');
const task: Task = {
    name: 'ends', normalized: true,
    questions: Array.from({ length: 6 }, (_, i) => ({ choices: [' the sea.', ' a zqx.', ' the old house.'].map((ending) => ({ context: `The ${i} men went to`, ending })), answer: i % 3 }))
};
const calibration = { samples: 2, context: 64 };
const output = path.join(folder, 'first');
let comparison: Comparison;

beforeAll(async () => {
    comparison = await compare(tiny, { output, ratios: [0.05, 0.25], methods: ['blockpruner', 'shortgpt', 'random'], seeds: 2, tasks: [task], text, calibration, device: 'cpu', threads: 1 });
});

test('each method at each ratio removes the fewest blocks, and a higher ratio removes more of the same', () => {
    expect(comparison.pruned.map(({ method, seed, ratio }) => [ratio, method, seed])).toEqual([0.05, 0.25].flatMap((ratio) =>
        [[ratio, 'blockpruner', null], [ratio, 'shortgpt', null], [ratio, 'random', 0], [ratio, 'random', 1]]));
    for (const { method, seed, ratio, removed, removedShare } of comparison.pruned) {
        expect(removedShare).toBeGreaterThanOrEqual(ratio);
        expect(removedShare).toBeLessThan(ratio + 0.1);
        const less = comparison.pruned.find((other) => other.method === method && other.seed === seed)!;
        expect(removed.slice(0, less.removed.length)).toEqual(less.removed);
        expect(removed.filter(({ kind }) => kind === 'attn').length === removed.length / 2 || method !== 'shortgpt').toBe(true);
    }
    const [first, second] = comparison.pruned.filter(({ method, ratio }) => method === 'random' && ratio === 0.25);
    expect(first!.removed).not.toEqual(second!.removed);
});

test('its figures are those of single evaluations', async () => {
    const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const sequences = await loadCalibration(model, calibration);
    for (const { removed, ...found } of [{ ...comparison.dense, removed: [] }, ...comparison.pruned]) {
        expect(found.calibration).toBeCloseTo(await perplexityOf(model, sequences, { skip: removed }), 6);
        const { perplexity, dense } = await textPerplexity(model, text, { skip: removed, context: 64, dense: model });
        expect(found.text!.perplexity).toBeCloseTo(perplexity, 6);
        expect(found.text).toEqual({ perplexity: found.text!.perplexity, divergence: dense!.divergence, sameTop: dense!.sameTop });
        expect(found.text!.divergence > 0.01).toBe(removed.length > 0);
        expect(found.tasks).toEqual([await scoreTask(model, task, { skip: removed })]);
    }
    model.dispose();
});

test('the table has a row for each, with the mean of the random ones, and marks the best', () => {
    const lines = comparisonTable(comparison).trimEnd().split('\n');
    expect(lines[0]).toBe('| Ratio | Removed | Method | Perplexity, calibration | Perplexity, LICENSE | KL divergence | Equal top-1 | ends |');
    expect(lines.slice(2).map((line) => line.split(' | ')[2])).toEqual(['dense', ...['blockpruner', 'shortgpt', 'random (mean of 2)'], ...['blockpruner', 'shortgpt', 'random (mean of 2)']]);
    expect(lines[2]).not.toContain('**');
    expect(lines.slice(3, 6).filter((line) => /\| \*\*[\d.]+\*\* \|/.test(line)).length).toBeGreaterThan(0);
    expect(lines[3]).toMatch(/^\| 0\.05 \| [\d.]+ % \| blockpruner \| \*\*[\d.]+\*\* \|/); // on what it searched on, it is the best
    const csv = comparisonCsv(comparison).trimEnd().split('\n').map((line) => line.split(','));
    expect(csv[0]).toEqual(['method', 'seeds', 'ratio', 'removed', 'calibration_perplexity', 'text_perplexity', 'text_kl_divergence', 'text_same_top', 'ends', 'ends_stderr']);
    expect(csv).toHaveLength(8);
    expect(csv.every((fields) => fields.length === 10)).toBe(true);
    expect(Number(csv[1]![4])).toBe(comparison.dense.calibration);
});

test('goes on with the results of a folder', async () => {
    const options = { output, methods: ['blockpruner', 'shortgpt', 'random'] as const, seeds: 2, tasks: [task], text, calibration, device: 'cpu' as const, threads: 1 };
    const before = fs.readFileSync(path.join(output, 'results.json'), 'utf8');
    await expect(compare(tiny, { ...options, ratios: [0.05] })).rejects.toThrow("isn't empty: go on with what is there by --resume");

    const seen: string[] = [];
    const onProgress = (what: string) => seen.push(what);
    const same = await compare(tiny, { ...options, ratios: [0.05, 0.25], resume: true, onProgress });
    expect([seen, same.pruned]).toEqual([['the model as it is'], comparison.pruned]);

    // an evaluation that is missing, a method that is new
    fs.writeFileSync(path.join(output, 'results.json'), JSON.stringify({ ...JSON.parse(before) as Comparison, pruned: comparison.pruned.slice(0, -1) }));
    const more = await compare(tiny, { ...options, ratios: [0.05, 0.25], methods: ['random', 'blockpruner-ffn'], resume: true, onProgress });
    expect(seen.slice(2)).toEqual(['random-1 at 0.25: perplexity and tasks', 'blockpruner-ffn: what goes', ...[0.05, 0.25].map((ratio) => `blockpruner-ffn at ${ratio}: perplexity and tasks`)]);
    expect(more.pruned.filter(({ method }) => method !== 'blockpruner-ffn')).toEqual(comparison.pruned);
    expect(more.pruned.filter(({ method }) => method === 'blockpruner-ffn').flatMap(({ removed }) => removed).every(({ kind }) => kind === 'ffn')).toBe(true);

    // with other tasks the searches hold, and nothing else
    seen.length = 0;
    const other = await compare(tiny, { ...options, ratios: [0.05], tasks: [], methods: ['blockpruner'], resume: true, onProgress });
    expect(seen).toEqual(['the model as it is', 'blockpruner at 0.05: perplexity and tasks']);
    expect(other.pruned).toEqual([{ ...comparison.pruned[0], tasks: [] }]);

    // a perplexity that overflowed is null in JSON
    const kept = fs.readFileSync(path.join(output, 'results.json'), 'utf8');
    fs.writeFileSync(path.join(output, 'results.json'), JSON.stringify({ ...other, pruned: other.pruned.map((one) => ({ ...one, calibration: Infinity })) }));
    const broken = await compare(tiny, { ...options, ratios: [0.05], tasks: [], methods: ['blockpruner'], resume: true });
    expect(broken.pruned[0]!.calibration).toBe(Infinity);
    expect(comparisonTable(broken)).toMatch(/blockpruner \| ∞ \|/);
    fs.writeFileSync(path.join(output, 'results.json'), kept);

    await expect(compare(tiny, { ...options, ratios: [0.05], calibration: { samples: 3, context: 64 }, resume: true })).rejects.toThrow(/are of searches with another calibration \(2 × 64 tokens.*now 3 × 64 tokens/);
    fs.writeFileSync(path.join(output, 'results.json'), '{}');
    await expect(compare(tiny, { ...options, ratios: [0.05], resume: true })).rejects.toThrow('results.json holds no results of a comparison');
});

test('the command writes table, CSV, JSON and report into a new folder', async () => {
    const output = path.join(folder, 'comparison');
    const args = ['compare', tiny, '--ratios', '0.05', '--methods', 'shortgpt,block-influence', '--samples', '2', '--context', '64', '--device', 'cpu', '--threads', '1', '-o', output];
    const { code, stdout } = await run(...args);
    expect(code).toBe(0);
    expect(stdout).toContain('| 0.05 | ');
    expect(fs.readdirSync(output).sort()).toEqual(['report.html', 'results.json', 'table.csv', 'table.md']);
    expect((JSON.parse(fs.readFileSync(path.join(output, 'results.json'), 'utf8')) as Comparison).pruned.map(({ method }) => method)).toEqual(['shortgpt', 'block-influence']);
    expect(fs.readFileSync(path.join(output, 'table.md'), 'utf8')).toBe(stdout.replace(/\n\n$/, '\n'));

    for (const [options, says] of [
        [[], "isn't empty: go on with what is there by --resume"],
        [['--resume', '--samples', '3'], 'another calibration'],
        [['-o', path.join(folder, 'new'), '--ratios', '0.1,2'], "not '0.1,2'"],
        [['-o', path.join(folder, 'new'), '--methods', 'best'], "there is no method 'best'"],
        [['-o', path.join(folder, 'missing', 'new')], 'there is no such folder'],
        [['-o', path.join(folder, 'new'), '--task', `piqa=${path.join(folder, 'none.jsonl')}`], 'there is no such file'],
        [['-o', path.join(folder, 'new'), '--samples', '0'], '--samples']
    ] as const) {
        const refused = await run(...args.slice(0, options[0] === '-o' ? -2 : undefined), ...options);
        expect([refused.code, refused.stderr.trimEnd().split('\n').length]).toEqual([1, 1]);
        expect(refused.stderr).toContain(says);
    }
    expect(fs.existsSync(path.join(folder, 'new'))).toBe(false);
});
