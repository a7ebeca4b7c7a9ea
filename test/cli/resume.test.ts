// Searches that were stopped, and go on by their journal.
import fs from 'node:fs';
import path from 'node:path';
import type { PruneResult } from '../../lib/index.js';
import { randomNumbers, temporaryFolder, tiny } from '../models';
import { expectRefused, onCpu, run, runJson, start } from './run';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);
const search = (output: string, ...options: string[]) => [
    'prune',
    tiny,
    '-o',
    output,
    '--remove',
    '6',
    '--method',
    'blockpruner',
    '--calibration',
    'embedded',
    '--samples',
    '4',
    '--context',
    '64',
    '--no-verify',
    '--repair',
    'none',
    ...onCpu,
    ...options
];

/** What must not depend on whether a search was stopped. */
const outcome = ({ removed, steps, perplexity }: PruneResult) => ({
    removed,
    perplexity,
    steps: steps.map((step) => [step.removed, step.perplexity, step.candidates])
});

const size = (name: string) => fs.statSync(name, { throwIfNoEntry: false })?.size ?? 0;

/** Runs a search and kills it once its journal has grown by so many bytes, or something is true. */
async function killed(output: string, growth: number, options: string[] = [], until = () => false): Promise<void> {
    const journal = `${output}.journal`;
    const before = size(journal);
    const { ended, kill } = start(...search(output, ...options));
    let over = false;
    void ended.then(() => (over = true));
    while (!over && size(journal) < before + growth && !until()) {
        await new Promise((resolve) => setTimeout(resolve, 2));
    }
    kill();
    const { signal } = await ended;
    expect(signal).toBe('SIGKILL'); // it was at work
}

let whole: PruneResult;
beforeAll(async () => {
    whole = await runJson<PruneResult>(...search(file('whole.gguf')));
});

test('a search that is killed at ten moments comes to the same end', async () => {
    const output = file('killed.gguf');
    const random = randomNumbers(5);
    const bytes = whole.steps.reduce((sum, { evaluations }) => sum + evaluations, 0) * 370; // of a line
    for (let life = 0; life < 10; life++) {
        await killed(output, (bytes / 12) * (1 + random() * 0.9), life > 0 ? ['--resume'] : []);
    }
    // a lock that a dead process leaves is none, and goes with the next run
    const left = ['killed.gguf.journal', 'killed.gguf.lock'];
    expect(fs.readdirSync(folder).filter((name) => name.startsWith('killed'))).toEqual(left);
    const result = await runJson<PruneResult>(...search(output, '--resume'));
    expect(outcome(result)).toEqual(outcome(whole));
    expect(fs.readFileSync(output).equals(fs.readFileSync(file('whole.gguf')))).toBe(true);
    expect(left.filter((name) => fs.existsSync(file(name)))).toEqual([]);
});

describe('with the journal of a stopped search', () => {
    const output = file('stopped.gguf');
    const journal = `${output}.journal`;
    let stopped: Buffer;
    beforeAll(async () => {
        await killed(output, Infinity, ['--order', file('stopped.json')], () => fs.existsSync(file('stopped.json')));
        stopped = fs.readFileSync(journal);
    });
    beforeEach(() => {
        fs.rmSync(output, { force: true });
        fs.writeFileSync(journal, stopped);
    });

    test('nothing is done unasked where nobody can be asked', async () => {
        await expectRefused(
            folder,
            search(output),
            `${journal} is the journal of a search that was stopped: go on with it by --resume, or begin anew with --no-resume`
        );
        expect(fs.readFileSync(journal).equals(stopped)).toBe(true);
    });

    test('--resume goes on, may go further, and says what it had', async () => {
        const { code, stderr } = await run(
            ...search(output, '--resume', '--order', file('stopped.json'), '--remove', '7')
        );
        expect(code).toBe(0);
        expect(stderr).toMatch(/; \d{2,} evaluations resumed\n/);
        const order = JSON.parse(fs.readFileSync(file('stopped.json'), 'utf8')) as Record<string, [string, number][]>;
        expect(order['6']).toEqual(whole.removed.map(({ kind, layer }) => [kind === 'attn' ? 'mha' : 'mlp', layer]));
        expect(order['7']).toHaveLength(7);
    });

    test('--no-resume begins anew', async () => {
        const { code, stderr } = await run(...search(output, '--no-resume', '--remove', '2'));
        expect([code, stderr.includes('resumed')]).toEqual([0, false]);
    });

    test.each([
        ['calibration', ['--context', '32'], /another calibration \(4 × 64 tokens, .*, now 4 × 32 tokens, .*\)/],
        ['search', ['--search', 'exact'], 'another search (race, confidence 0.999, now exact)'],
        ['confidence', ['--confidence', '0.99'], 'another search (race, confidence 0.999, now race, confidence 0.99)'],
        ['choice of blocks', ['--blocks', 'ffn'], 'another blocks (all, now ffn)']
    ])('of another %s, --resume is refused', async (_, options, says) => {
        await expectRefused(folder, search(output, '--resume', ...options), says);
        expect(fs.readFileSync(journal).equals(stopped)).toBe(true);
    });

    test('of another model, --resume is refused', async () => {
        const other = file('other.gguf');
        fs.copyFileSync(tiny, other);
        fs.appendFileSync(other, 'x');
        await expectRefused(
            folder,
            search(output, '--resume').map((argument) => (argument === tiny ? other : argument)),
            /another model \(SHA-256 \w+, now SHA-256 \w+\)/
        );
    });

    test('an order file of something else is kept', async () => {
        fs.writeFileSync(file('mine.json'), 'mine');
        fs.rmSync(journal);
        await expectRefused(folder, search(output, '--resume', '--order', file('mine.json')), 'mine.json exists');
    });

    test('a damaged line is named', async () => {
        fs.writeFileSync(journal, stopped.toString().replace('"sequence"', '"sequences"'));
        await expectRefused(
            folder,
            search(output, '--resume'),
            `can't read the journal ${journal}: line 2 is damaged; begin anew with --no-resume`
        );
    });
});

test('--resume without a journal just begins', async () => {
    expect((await runJson<PruneResult>(...search(file('fresh.gguf'), '--resume', '--remove', '2'))).removed).toEqual(
        whole.removed.slice(0, 2)
    );
});

test('the journal is never the order file, and never the model', async () => {
    const output = file('named.gguf');
    await expectRefused(
        folder,
        search(output, '--order', `${output}.journal`),
        'the order file and the journal are both'
    );
    fs.copyFileSync(tiny, `${output}.journal`);
    const args = search(output, '--no-resume').map((argument) => (argument === tiny ? `${output}.journal` : argument));
    await expectRefused(folder, args, 'is the model itself');
    expect(fs.readFileSync(`${output}.journal`).equals(fs.readFileSync(tiny))).toBe(true);
});

test.each([
    ['--search', 'fast', 'Choices: "race", "exact"'],
    ['--confidence', '1.5', 'confidence must be from 0.5 to below 1, not 1.5'],
    ['--confidence', '1', "confidence must be from 0.5 to below 1, not 1: what is certain is the search 'exact'"],
    ['--confidence', 'high', '--confidence must be a number'],
    ['--memory', '-1', '--memory must be a whole number of at least 0'],
    ['--memory', 'much', '--memory must be a whole number of at least 0']
])('%s %s is refused', async (option, value, says) => {
    await expectRefused(folder, search(file('bad.gguf'), option, value), says);
});
