/// <reference lib="dom" />
/// <reference lib="dom.iterable" />
// The reports in a real browser.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { source as axe, type AxeResults } from 'axe-core';
import type { Page } from 'puppeteer-core';
import {
    comparedMethods as methods,
    comparisonReport,
    formatBlock,
    formatMove,
    prune as pruneModel,
    pruneReport,
    type Block,
    type Comparison,
    type PruneResult,
    type Quality
} from '../../lib/index.js';
import { expectRefused, hasDraft, onCpu, run, runJson, shortPrune, shortSearch, start } from '../cli/run';
import { describeInBrowser } from '../browser';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);
const report = file('report.html');
const task = file('ends.jsonl');
fs.writeFileSync(
    task,
    Array.from({ length: 6 }, (_, i) =>
        JSON.stringify({ context: `The ${i} men went to`, choices: ['the sea.', 'a zqx.'], answer: i % 2 })
    ).join('\n')
);
const taskArgument = `multiple-choice=${task},context:context,choices:choices,answer:answer`;

const hostile = `<script>alert(1)</script><img src=x onerror=alert(2)>"'&.gguf`;
const score = (value: number) => ({ value, stderr: 0.03 });
const quality = (calibration: number): Quality => ({
    calibration,
    text: { perplexity: 2 * calibration, divergence: 0.1, sameTop: 0.5 },
    tasks: [
        { task: 'piqa', questions: 50, acc: score(1 / calibration), acc_norm: score(0.9 / calibration) },
        { task: hostile, questions: 50, acc: score(1 / calibration), acc_norm: null }
    ],
    answers: score(0.5 / calibration),
    cost: {
        bytes: 2 ** 30 / calibration,
        cacheBytes: 3072,
        speed: { prompt: calibration / 2, generation: 1.5 },
        draft: null
    }
});
/** Made up; one method can't remove the higher ratio. */
const comparison: Comparison = {
    model: hostile,
    blocks: Array.from({ length: 20 }, (_, i) => ({ kind: i % 2 ? 'ffn' : 'attn', layer: i >> 1 })),
    calibration: { name: hostile, sequences: 2, context: 64 },
    text: hostile,
    searchedWith: {},
    evaluatedWith: {},
    dense: quality(2),
    quantized: [{ type: 'Q5_K_M', ...quality(3) }],
    searches: [],
    seconds: 5,
    pruned: [0.1, 0.2]
        .flatMap((ratio) =>
            methods.flatMap((method, i) =>
                (method === 'random' ? [0, 1] : [null]).map((seed) => ({
                    method,
                    seed,
                    ratio,
                    repair: 'none' as const,
                    removedShare: ratio + 0.01 * i,
                    removed: (
                        [
                            { kind: 'ffn', layer: i },
                            { kind: 'attn', layer: (i + 1) % 10 },
                            { kind: 'attn', layer: (i + 5 + (seed ?? 0)) % 10 }
                        ] as Block[]
                    ).slice(0, ratio === 0.1 ? 1 : 3),
                    ...quality(2 + 40 * ratio * (i + 1) ** 2 + (seed ?? 0))
                }))
            )
        )
        .filter(({ method, ratio }) => method !== 'sleb' || ratio < 0.2)
};
/** The first method also repairs what it leaves at 10 %. */
comparison.pruned.splice(1, 0, { ...comparison.pruned[0]!, ...quality(3), repair: 'linear', removedShare: 0.09 });

let result: PruneResult;
beforeAll(async () => {
    result = await runJson<PruneResult>(
        'prune',
        tiny,
        '-o',
        file('pruned.gguf'),
        '--report',
        report,
        '--remove',
        '3',
        '--method',
        'blockpruner',
        '--calibration',
        'embedded',
        '--samples',
        '3',
        '--context',
        '64',
        '--task',
        taskArgument,
        '--limit',
        '4',
        ...onCpu
    );
});

test('prune --report tells all that the report shows in its JSON too', () => {
    expect(result).toMatchObject({
        method: 'blockpruner',
        calibration: { name: 'calibration.txt', sequences: 3, context: 64 },
        speed: { device: 'cpu', threads: 1, tokens: 128 }
    });
    expect(result.blocks).toHaveLength(24);
    expect(result.steps.map(({ candidates }) => candidates.length)).toEqual([24, 23, 22]);
    for (const tasks of [result.tasks.dense, result.tasks.pruned]) {
        expect(tasks).toMatchObject([{ task: 'ends.jsonl', questions: 4 }]);
    }
    for (const rounds of [result.speed!.dense, result.speed!.pruned]) {
        expect(rounds).toHaveLength(3);
        expect(rounds.every(({ prompt, generation }) => prompt > 0 && generation > 0)).toBe(true);
    }
    expect(fs.readdirSync(folder).filter((name) => name.startsWith('.'))).toEqual([]);
});

test('--task without --report scores too', async () => {
    const args = ['prune', tiny, '-o', file('scored.gguf'), '--task', taskArgument, '--limit', '3', ...shortSearch];
    const { code, stdout } = await run(...args);
    expect([
        code,
        stdout
            .split('\n')
            .filter((line) => line.includes('ends.jsonl'))
            .map((line) =>
                line
                    .replace(/ acc.*/, '')
                    .replace(/ +/g, ' ')
                    .trim()
            )
    ]).toEqual([0, ['before ends.jsonl 3 questions', 'after ends.jsonl 3 questions']]);
});

describe('a report is refused before the search', () => {
    const prune = (...options: string[]) => ['prune', tiny, '-o', file('new.gguf'), ...shortSearch, ...options];
    test.each([
        ['exists', ['--report', report], 'report.html exists: choose another name or give --force'],
        ['has no folder', ['--report', file('none/report.html')], 'there is no such folder'],
        ['has no name', ['--report', ''], 'the report has no name'],
        ['is a folder', ['--report', folder, '--force'], 'is a folder'],
        ['is the output', ['--report', file('new.gguf')], 'the report and the output are both'],
        [
            'is the order file',
            ['--report', file('one'), '--order', file('one')],
            'the order file and the report are both'
        ],
        ['is the journal', ['--report', file('new.gguf.journal')], 'the report and the journal are both'],
        ['is the model', ['--report', tiny, '--force'], 'is the model itself'],
        [
            'has no questions',
            ['--report', file('r.html'), '--task', taskArgument, '--limit', '0'],
            '--limit must be a whole number of at least 1'
        ],
        ['is to be watched and has no name', ['--watch'], '--watch shows the search in its report: say by --report'],
        [
            'is to be watched and has no steps',
            ['--report', file('r.html'), '--watch', '--method', 'laco', '--blocks', 'all', '--remove', '2'],
            'laco merges layers: there is no removal to watch; leave out --watch'
        ],
        [
            'has a task without a file',
            ['--report', file('r.html'), '--task', `piqa=${file('none.jsonl')}`],
            'there is no such file'
        ]
    ])('if it %s', async (_, options, says) => {
        await expectRefused(folder, prune(...options), says);
    });

    test('but replaces a file with --force', async () => {
        fs.writeFileSync(file('mine.html'), 'mine');
        await runJson(...(prune('--report', file('mine.html'), '--force', '--no-verify') as [string, ...string[]]));
        expect(fs.readFileSync(file('mine.html'), 'utf8')).toMatch(/^<!DOCTYPE html>/);
    });
});

(process.platform === 'win32' ? test.skip : test)(
    'Ctrl-C while the speed is measured leaves no output, and a report that says so',
    async () => {
        const outputs = fs.mkdtempSync(file('outputs-'));
        const search = start(
            'prune',
            tiny,
            '-o',
            path.join(outputs, 'new.gguf'),
            '--report',
            path.join(outputs, 'report.html'),
            '--no-verify',
            '--blocks',
            'attn',
            '--remove',
            '1',
            ...shortPrune
        );
        while (!hasDraft(outputs)) {
            await new Promise((resolve) => setTimeout(resolve, 5));
        }
        search.interrupt();
        expect(await search.ended).toMatchObject({ code: 130, stdout: '' });
        expect(fs.readdirSync(outputs)).toEqual(['new.gguf.journal', 'report.html']);
        const page = fs.readFileSync(path.join(outputs, 'report.html'), 'utf8');
        expect(page).toContain('1 of 24 blocks removed so far');
        expect(page).toContain('The run was stopped before new.gguf was written. The same again with --resume');
    }
);

test('a run that fails says why on its page', async () => {
    const outputs = fs.mkdtempSync(file('failed-'));
    const page = path.join(outputs, 'report.html');
    const pruned = pruneModel(tiny, {
        output: path.join(outputs, 'new.gguf'),
        report: page,
        blocks: 'attn',
        remove: 2,
        repair: 'none',
        device: 'cpu',
        calibration: { file: 'embedded', samples: 1, context: 32 },
        onStep: () => {
            throw new Error('the paper is out');
        }
    });
    await expect(pruned).rejects.toThrow('the paper is out');
    const text = fs.readFileSync(page, 'utf8');
    expect(text).toContain('<h2 id="advice">Failed</h2>');
    expect(text).toContain('Removal 1 was attn.');
    expect(text).toContain(
        'The run failed before new.gguf was written: the paper is out. The same again with --resume'
    );
});

test('a report whose folder goes while the search runs costs the page, not the search', async () => {
    const outputs = fs.mkdtempSync(file('gone-'));
    const page = path.join(outputs, 'pages', 'report.html');
    fs.mkdirSync(path.dirname(page));
    const output = path.join(outputs, 'new.gguf');
    const args = ['prune', tiny, '-o', output, '--report', page, '--remove', '2', '--no-verify', ...shortPrune];
    const search = start(...args, '--blocks', 'attn', '--watch');
    while (!fs.existsSync(page)) {
        await new Promise((resolve) => setTimeout(resolve, 5));
    }
    fs.rmSync(path.dirname(page), { recursive: true });
    const { code, stderr } = await search.ended;
    expect([code, stderr]).toEqual([1, expect.stringContaining(`blockpruner: can't write the report ${page}: `)]);
    expect(stderr).toContain('\n  2. attn.');
    expect(fs.existsSync(output)).toBe(true);
});

describeInBrowser('in a browser', (browser) => {
    const comparisonFile = file('comparison.html'),
        hostileFile = file('hostile.html');
    beforeAll(async () => {
        fs.writeFileSync(comparisonFile, await comparisonReport(comparison));
        const tasks = (scores: PruneResult['tasks']['dense']) => scores.map((one) => ({ ...one, task: hostile }));
        fs.writeFileSync(
            hostileFile,
            await pruneReport({
                ...result,
                model: hostile,
                output: hostile,
                architecture: hostile,
                calibration: { ...result.calibration, name: hostile },
                tasks: { dense: tasks(result.tasks.dense), pruned: tasks(result.tasks.pruned) }
            })
        );
    });

    /** Opens a page that may ask for nothing and say nothing. */
    async function withPage<T>(
        name: string,
        use: (page: Page) => Promise<T>,
        { scheme = 'light', width = 1280, script = true } = {}
    ): Promise<T> {
        const page = await browser().newPage();
        const asked: string[] = [],
            said: string[] = [];
        page.on('request', (request) => asked.push(request.url()));
        page.on('console', (message) => said.push(message.text()));
        page.on('pageerror', (error) => said.push(String(error)));
        page.on('dialog', (dialog) => {
            said.push(dialog.message());
            void dialog.dismiss();
        });
        await page.setJavaScriptEnabled(script);
        await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
        await page.setViewport({ width, height: 800 });
        await page.goto(pathToFileURL(name).href);
        const found = await use(page);
        expect({ asked, said }).toEqual({ asked: [pathToFileURL(name).href], said: [] });
        await page.close();
        return found;
    }
    /** What the values of a figure's charts are called. */
    const labels = (page: Page, title: string) =>
        page.evaluate(
            (heading) =>
                [...document.querySelectorAll('section')]
                    .filter((section) => section.querySelector('h2')?.textContent === heading)
                    .flatMap((section) =>
                        [...section.querySelectorAll('path[role=graphics-symbol]')].map((mark) =>
                            mark.getAttribute('aria-label')!
                        )
                    ),
            title
        );
    const cellsOf = (page: Page, title: string) =>
        page.evaluate(
            (heading) =>
                [...document.querySelectorAll('section')]
                    .filter((section) => section.querySelector('h2')?.textContent === heading)
                    .flatMap((section) =>
                        [...section.querySelectorAll('tbody tr')].map((row) =>
                            [...row.children].map((cell) => cell.textContent)
                        )
                    ),
            title
        );

    test('every value of the JSON is in the page', () =>
        withPage(report, async (page) => {
            const points = await labels(page, 'Perplexity against parameters removed');
            expect(points).toHaveLength(result.steps.length + 1);
            result.steps.forEach(({ removed, perplexity }, i) =>
                expect(points[i + 1]).toContain(
                    `${i + 1}. without ${formatMove(removed)}: perplexity ${perplexity.toFixed(2)},`
                )
            );
            const gone = result.blocks
                .filter((block) => result.removed.some((one) => formatBlock(one) === formatBlock(block)))
                .reduce((sum, { parameters }) => sum + parameters, 0);
            expect(points.at(-1)).toContain(
                `${Number(((100 * gone) / result.parameters.dense).toFixed(1))} % of the parameters removed`
            );

            const map = await labels(page, 'Which blocks went, and when');
            expect(map).toEqual(
                expect.arrayContaining(
                    result.blocks.map((block) => {
                        const number = result.removed.findIndex((one) => formatBlock(one) === formatBlock(block)) + 1;
                        return `${formatBlock(block)}: ${number === 0 ? 'stays' : `removed as number ${number}`}`;
                    })
                )
            );
            expect(map).toHaveLength(result.blocks.length);

            const heat = await labels(page, 'Importance of every block at every step');
            const candidates = result.steps.flatMap((step, i) =>
                step.candidates.map((one) => ({ ...one, step: i + 1, removed: formatMove(step.removed) }))
            );
            expect(heat).toHaveLength(candidates.length);
            for (const { move, step, perplexity, sequences, removed } of candidates) {
                const label = heat.find((one) => one.startsWith(`${formatMove(move)}, step ${step}: `))!;
                expect(Number(/perplexity ([\d,.]+\d)/.exec(label)![1]!.replaceAll(',', '')) / perplexity!).toBeCloseTo(
                    1,
                    3
                );
                expect([label.includes('estimate'), label.includes(', removed')]).toEqual([
                    sequences < 3,
                    formatMove(move) === removed
                ]);
            }
            expect(
                (await cellsOf(page, 'Importance of every block at every step'))
                    .flat()
                    .filter((text) => /^~?\d/.test(text))
            ).toHaveLength(candidates.length);

            expect((await labels(page, 'Task scores')).map((label) => label.replace(/:.*/, ''))).toEqual([
                'ends.jsonl before',
                'ends.jsonl after'
            ]);
            expect(await labels(page, 'Size and speed')).toHaveLength(8);
            expect(await page.$eval('.facts', (facts) => facts.textContent)).toContain(
                `${result.perplexity.dense.toFixed(2)} → ${result.perplexity.pruned.toFixed(2)}`
            );
        }));

    test('a method that ranks once has no heat map, and says so', async () => {
        const once = file('once.html');
        fs.writeFileSync(
            once,
            await pruneReport({
                ...result,
                method: 'random',
                steps: result.steps.map((step) => ({ ...step, candidates: step.candidates.slice(0, 1) })),
                tasks: { dense: [], pruned: [] },
                speed: null
            })
        );
        await withPage(once, async (page) => {
            expect(await labels(page, 'Importance of every block at every step')).toEqual([]);
            expect(await page.$eval('main', (main) => main.textContent)).toContain(
                'The method random does not compare blocks by their perplexity'
            );
            expect(await labels(page, 'Size')).toHaveLength(4);
        });
    });

    test('what goes at once, as of laco, has no order', async () => {
        const atOnce = file('laco.html');
        fs.writeFileSync(
            atOnce,
            await pruneReport({ ...result, method: 'laco', merged: ['blk.1 = -1 blk.1 + 1 blk.2'], steps: [] })
        );
        await withPage(atOnce, async (page) => {
            expect(await labels(page, 'Perplexity against parameters removed')).toHaveLength(2);
            expect(
                (await labels(page, 'Which blocks went')).filter((label) => label.endsWith(': removed'))
            ).toHaveLength(result.removed.length);
            expect(await page.evaluate(() => document.querySelector('main')!.textContent)).toContain(
                'blk.1 = -1 blk.1 + 1 blk.2'
            );
        });
    });

    test('what a repair gained is told beside what the removals cost', async () => {
        const page = file('repaired.html');
        const searched = result.steps.at(-1)!.perplexity;
        const unrepaired = 1.1 * searched;
        const perplexity = { ...result.perplexity, pruned: 0.9 * searched };
        const linear = [{ before: result.blocks[3]!, type: 'q8_0' }];
        const repair = { kind: 'linear' as const, linear, refitted: [], tokens: 4096, unrepaired, seconds: 1 };
        fs.writeFileSync(page, await pruneReport({ ...result, perplexity, repair, linearGaps: true }));
        await withPage(page, async (shown) => {
            const text = await shown.evaluate(() => document.querySelector('main')!.textContent);
            expect(text).toMatch(
                new RegExp(
                    `to ${searched.toFixed(2)} .* were removed, with a linear block in each gap, fitted to the ` +
                        `model as it is, and the repair brought it to ${perplexity.pruned.toFixed(2)} `
                )
            );
            expect(text).toContain(
                `linear blocks before ffn.1; fitted to 4096 tokens (perplexity without ${unrepaired.toFixed(4)})`
            );
        });
    });

    test('the curve of a search in a copy is of the copy, what a repair gained of the model', async () => {
        const page = file('copy.html');
        const of = result.steps.at(-1)!.perplexity;
        const searched = { type: 'Q8_0' as const, perplexity: { dense: 1.5 * result.perplexity.dense, pruned: of } };
        const perplexity = { ...result.perplexity, pruned: 0.9 * of };
        const repair = { kind: 'linear' as const, linear: [], refitted: [], tokens: 64, unrepaired: of, seconds: 1 };
        fs.writeFileSync(page, await pruneReport({ ...result, searched, perplexity, repair }));
        await withPage(page, async (shown) => {
            const [dense] = await labels(shown, 'Perplexity against parameters removed');
            expect(dense).toContain(`perplexity ${searched.perplexity.dense.toFixed(2)}`);
            const text = await shown.evaluate(() => document.querySelector('main')!.textContent);
            expect(text).toMatch(
                new RegExp(
                    `the perplexity of a copy in Q8_0 went from ${searched.perplexity.dense.toFixed(2)} to ` +
                        `${of.toFixed(2)} .* the repair brought the model's to ${perplexity.pruned.toFixed(2)} `
                )
            );
        });
    });

    test('a search can be watched in a file, is killed, goes on, and comes to its report', async () => {
        const live = file('live.html');
        const args = ['prune', tiny, '-o', file('live.gguf'), '--report', live, '--watch', '--remove', '7'];
        const options = ['--method', 'blockpruner', '--search', 'exact', '--calibration', 'embedded', '--samples'];
        const search = [...args, ...options, '6', '--context', '128', '--repair', 'none', '--no-verify', ...onCpu];
        const until = async (isTrue: () => boolean | Promise<boolean>) => {
            for (const end = Date.now() + 60_000; !(await isTrue());) {
                expect(Date.now()).toBeLessThan(end);
                await new Promise((resolve) => setTimeout(resolve, 20));
            }
        };
        const killed = start(...search);
        await until(() => fs.existsSync(live));
        const page = await browser().newPage();
        const asked = new Set<string>();
        const said: string[] = [];
        page.on('request', (request) => asked.add(request.url()));
        page.on('console', (message) => said.push(message.text()));
        page.on('pageerror', (error) => said.push(String(error)));
        await page.goto(pathToFileURL(live).href);
        /** What the page says that was removed; it may be about to be read again. */
        const shown = async () => {
            const lead = await page.$eval('.lead', (one) => one.textContent).catch(() => '-1');
            return Number(/^\d+/.exec(lead ?? ''));
        };
        const written = () => Number(/lead">(\d+)/.exec(fs.readFileSync(live, 'utf8'))![1]);

        // it follows the search, by itself
        const seen = new Set<number>();
        await until(async () => seen.add(await shown()) && (await shown()) >= 2);
        expect(seen.size).toBeGreaterThan(1);
        killed.kill();
        expect((await killed.ended).stderr).toContain(`the search can be watched at ${pathToFileURL(live).href}\n`);
        await until(async () => (await shown()) === written());
        const before = written();
        expect(before).toBeLessThan(7);
        expect(fs.readFileSync(live, 'utf8')).toContain(`${before} of 24 blocks removed so far`);

        // whether to go on is asked before anything is said of the page
        await expectRefused(folder, search, 'go on with it by --resume, or begin anew with --no-resume');

        // no other page is taken for it, and it is where it was when the search goes on
        fs.renameSync(live, file('live-kept.html'));
        fs.writeFileSync(live, 'mine');
        await expectRefused(folder, [...search, '--resume'], 'live.html exists: choose another name or give --force');
        fs.renameSync(file('live-kept.html'), live);
        const resumed = start(...search, '--resume');
        await until(async () => (await shown()) > before);

        // what the reader opens stays open; a page that is just being replaced may not have heard of it
        let read = 0;
        await until(async () => {
            const last = read;
            const found = await page
                .$eval('details', (details) => {
                    const { open } = details;
                    details.open = true;
                    return { open, read: performance.timeOrigin };
                })
                .catch(() => undefined);
            read = found?.read ?? read;
            return found !== undefined && found.open && found.read !== last;
        });

        // the reader can have it stay as it is; it was read again a moment ago
        await until(() => page.$eval('.follow input', (box) => (box.click(), true)).catch(() => false));
        const stays = await shown();
        expect((await page.evaluate(`${axe}; axe.run()`)) as AxeResults).toMatchObject({ violations: [] });
        await until(() => written() > stays);
        await new Promise((resolve) => setTimeout(resolve, 2500)); // longer than until it would be read again
        expect([await shown(), await page.$eval('.follow input', (box) => box.checked)]).toEqual([stays, false]);
        await page.$eval('.follow input', (box) => box.click());

        const { code, stderr } = await resumed.ended;
        expect({ code, stderr }).toMatchObject({ code: 0 });
        await until(async () => (await page.$('.follow').catch(() => null)) === null && (await shown()) === 7);
        expect(await page.$eval('main', (main) => main.textContent)).toContain('Generation speed');
        expect([...asked, ...said]).toEqual([pathToFileURL(live).href]);
        await page.close();
    }, 240_000);

    test('a comparison shows each method at each ratio', () =>
        withPage(comparisonFile, async (page) => {
            const rows = 2 * methods.length; // the mean of random's orders, one that can't, one that is repaired
            // at each line's start the model as it is; what is above 100 times its perplexity is in the caption
            const drawn = methods.length + 1 + 8 + 3;
            expect(await labels(page, 'Perplexity on the calibration text')).toHaveLength(drawn);
            expect(await labels(page, `Perplexity on ${hostile}`)).toHaveLength(drawn);
            const captions = await page.$$eval('figcaption', (all) => all.map(({ textContent }) => textContent));
            expect(captions[0]).toMatch(
                / Above 200\.0, and not in the chart: laco at 20 %; .*; random \(mean of 2\) at 10 %, 20 %; blockpruner-attn at 10 %, 20 %; blockpruner-ffn at 10 %, 20 %\.$/
            );
            expect(await labels(page, 'Task scores: piqa')).toHaveLength(rows);
            const { lines, legend } = await page.evaluate(() => {
                const figure = [...document.querySelectorAll('section')].find(
                    (section) => section.querySelector('h2')?.textContent === 'Perplexity on the calibration text'
                )!;
                return {
                    lines: [...figure.querySelectorAll('svg .mark-line path')].map((line) =>
                        line.getAttribute('stroke')
                    ),
                    legend: [...figure.querySelectorAll('.legend li')].map(
                        (item) =>
                            `${getComputedStyle(item.firstElementChild!).color} ${item.firstElementChild!.textContent}`
                    )
                };
            });
            expect([new Set(lines).size, lines.length, new Set(legend).size]).toEqual([
                methods.length,
                methods.length + 1, // the repaired line has its method's colour
                methods.length + 1
            ]);
            const sizes = await labels(page, 'Perplexity by the size of the file');
            expect(sizes).toHaveLength(2 + drawn);
            expect(sizes).toContain('the model as it is, Q5_K_M: 341.3 MiB, perplexity 6.00');
            expect(sizes).toContain(`${methods[0]} + linear at 10 %: 341.3 MiB, perplexity 6.00`);
            expect(await labels(page, 'Perplexity by the speed of reading a prompt')).toHaveLength(2 + drawn);
            expect(await labels(page, 'Which blocks each method removed')).toHaveLength(
                (methods.length + 1) * comparison.blocks.length
            );
            const table = await cellsOf(page, 'All figures');
            expect(table.map(([method, ratio]) => [method, ratio])).toEqual([
                ['the model as it is', ''],
                ['the model as it is, Q5_K_M', ''],
                ...[0.1, 0.2].flatMap((ratio) =>
                    methods
                        .filter((method) => method !== 'sleb' || ratio < 0.2)
                        .flatMap((method, i) => [
                            method === 'random' ? 'random (mean of 2)' : method,
                            ...(i === 0 && ratio === 0.1 ? [`${method} + linear`] : [])
                        ])
                        .map((name) => [name, `${100 * ratio} %`])
                )
            ]);
            expect(table[2]!.slice(3, 5)).toEqual(['6.00', '12.00']);
        }));

    test.each([
        ['prune', hostileFile],
        ['compare', comparisonFile]
    ])('names are text, whatever they are (%s)', async (_, name) => {
        await withPage(name, async (page) => {
            expect(
                await page.evaluate(() => [document.querySelectorAll('img').length, document.scripts.length])
            ).toEqual([0, 1]);
            expect(await page.$eval('h1', (heading) => heading.textContent)).toBe(path.basename(hostile));
            expect(
                (await page.evaluate(() => document.querySelector('main')!.textContent)).split(hostile).length
            ).toBeGreaterThan(2);
        });
    });

    describe.each([
        ['prune', report],
        ['compare', comparisonFile]
    ])('%s', (_, name) => {
        test.each([
            ['light', 1280],
            ['dark', 1280],
            ['light', 360],
            ['dark', 360]
        ])('axe finds nothing, %s, %i pixels wide', async (scheme, width) => {
            const violations = await withPage(
                name,
                async (page) => {
                    await page.evaluate(() =>
                        document.querySelectorAll('details').forEach((details) => (details.open = true))
                    );
                    await page.evaluate(axe);
                    return ((await page.evaluate('axe.run()')) as AxeResults).violations;
                },
                { scheme, width }
            );
            expect(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)])).toEqual([]);
        });

        test('fits on a telephone, with text that can be read', () =>
            withPage(
                name,
                async (page) => {
                    const { width, smallest } = await page.evaluate(() => {
                        const sizes: number[] = [];
                        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                        while (walker.nextNode()) {
                            const element = walker.currentNode.parentElement!;
                            const svg = element.closest('svg');
                            const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
                            if (walker.currentNode.textContent!.trim() !== '' && !element.matches('script, style')) {
                                sizes.push(parseFloat(getComputedStyle(element).fontSize) * scale);
                            }
                        }
                        return { width: document.documentElement.scrollWidth, smallest: Math.min(...sizes) };
                    });
                    expect(width).toBe(360);
                    expect(smallest).toBeGreaterThanOrEqual(11);
                },
                { width: 360 }
            ));

        test('all of it can be reached by keys, and every value has a text', () =>
            withPage(name, async (page) => {
                const charts = await page.$$eval('svg', (all) =>
                    all.map((svg) => ({
                        name: svg.getAttribute('aria-label'),
                        marks: svg.querySelectorAll('path[role=graphics-symbol]').length
                    }))
                );
                const interactive = await page.evaluate(
                    () =>
                        [...document.querySelectorAll('summary, [tabindex="0"]')].filter((element) =>
                            element.checkVisibility()
                        ).length
                );
                const visited = new Set<string>();
                let reached = 0;
                const active = () =>
                    page.evaluate(() => {
                        const { activeElement: element } = document;
                        const all = [...document.querySelectorAll('*')];
                        return {
                            index: String(all.indexOf(element!)),
                            chart: element!.closest('svg')?.getAttribute('aria-label') ?? null,
                            label: element!.getAttribute('aria-label'),
                            tip: document.querySelector<HTMLElement>('.tip')!.hidden
                                ? null
                                : document.querySelector('.tip')!.textContent
                        };
                    });
                for (let i = 0; i < interactive; i++) {
                    await page.keyboard.press('Tab');
                    const first = await active();
                    visited.add(first.index);
                    if (first.chart !== null) {
                        expect(first.tip).toBe(first.label);
                        const { marks } = charts.find((chart) => chart.name === first.chart)!;
                        const seen = new Set([first.index]);
                        for (let mark = 1; mark < marks; mark++) {
                            await page.keyboard.press('ArrowRight');
                            const next = await active();
                            expect(next.label).toBeTruthy();
                            expect(next.tip).toBe(next.label);
                            seen.add(next.index);
                        }
                        reached += seen.size;
                        await page.keyboard.press('Home');
                        expect((await active()).index).toBe(first.index);
                    }
                }
                expect(visited.size).toBe(interactive);
                expect(reached).toBe(charts.reduce((sum, { marks }) => sum + marks, 0));
                await page.keyboard.press('Escape');
                expect((await active()).tip).toBe(null);
            }));

        test('is whole without its script', () =>
            withPage(
                name,
                async (page) => {
                    // the browser's own view of it: what a screen reader gets
                    const { nodes } = await (await page.createCDPSession()).send('Accessibility.getFullAXTree');
                    const named = nodes.map(({ name: of }) => String(of?.value ?? ''));
                    expect(named.filter((text) => /perplexity \d/.test(text)).length).toBeGreaterThan(3);
                    expect(nodes.filter(({ role }) => role?.value === 'DisclosureTriangle').length).toBeGreaterThan(3);
                },
                { script: false }
            ));
    });

    test('arrow keys go up and down in a column of the heat map', () =>
        withPage(report, async (page) => {
            const label = () =>
                page.evaluate(() => document.activeElement!.getAttribute('aria-label')!.replace(/:.*/, ''));
            await page.$eval('svg[aria-label^="Heat map: feed"] path[role=graphics-symbol]', (mark) =>
                (mark as SVGElement).focus()
            );
            const found = [await label()];
            for (const key of ['ArrowDown', 'ArrowRight', 'ArrowUp', 'End'] as const) {
                await page.keyboard.press(key);
                found.push(await label());
            }
            const steps = result.removed.some(({ kind, layer }) => kind === 'ffn' && layer < 2)
                ? (expect.any(Array) as string[])
                : ['ffn.0, step 1', 'ffn.1, step 1', 'ffn.1, step 2', 'ffn.0, step 2', 'ffn.11, step 3'];
            expect(found).toEqual(steps);
        }));
});
