import fs from 'node:fs';
import path from 'node:path';
import readline from 'node:readline/promises';
import { pathToFileURL } from 'node:url';
import type { Argv } from 'yargs';
import { formatFixed, formatMebibytes, formatSeconds } from '../format.js';
import { methods } from '../methods/index.js';
import { worths, type SearchStart } from '../methods/method.js';
import { journalOf, prune } from '../pipeline/prune.js';
import { searchTypes, type SearchType } from '../pipeline/quantize.js';
import { formatStep, type Step } from '../search/greedy.js';
import { Interrupted, interruptSignal, NOTHING_WRITTEN, withOutcome } from './interrupt.js';
import {
    calibrationOf,
    calibrationOptions,
    deviceOf,
    deviceOptions,
    jsonOption,
    modelArgument,
    outputOptions,
    quantizeOf,
    quantizeOptions,
    repairOf,
    repairOptions,
    repeatableTask,
    searchOf,
    searchOptions,
    taskOptions
} from './options.js';
import { print, pruneResultLines } from './print.js';
import { withProgress } from './progress.js';
import { tellsInJson } from './stderr.js';
import { loadTasks } from './tasks.js';

export const command = 'prune <model>';
export const describe = 'Search the blocks that matter least and write the model without them';

export const builder = (yargs: Argv) =>
    repeatableTask(modelArgument(yargs))
        .options({
            ...outputOptions,
            remove: { type: 'number', describe: 'Remove so many blocks' },
            ratio: { type: 'number', describe: 'Remove this share of the parameters (0.2 is 20 %)' },
            'max-increase': {
                type: 'number',
                describe: 'Remove while the perplexity rises by at most this share (0.1 is 10 %)'
            },
            blocks: {
                choices: ['all', 'attn', 'ffn'] as const,
                default: 'all' as const,
                describe: 'Which blocks may go'
            },
            method: {
                choices: methods,
                default: 'balanced' as const,
                describe:
                    'How it is decided what goes: greedily, by the loss for the parameters that go, blocks and ' +
                    "layers (balanced), or by the paper's perplexity, blocks (blockpruner) or layers (sleb); by " +
                    'merging layers (laco); or by ranks measured once'
            },
            per: {
                choices: worths,
                describe:
                    'What the rise of the loss is counted by when candidates are compared: the removal, as in the ' +
                    'paper, or what goes with it',
                defaultDescription: 'parameters for balanced, else removal'
            },
            'search-type': {
                choices: searchTypes,
                describe:
                    'Compare candidates in a copy of the model in this type, which may be faster: Q8_0 on a CPU, F16 ' +
                    'on a GPU; what is written is made of the model itself',
                defaultDescription: "the model's own"
            },
            swaps: {
                type: 'number',
                describe: 'How often each removal is looked at again at the end: is another one better in its place?',
                defaultDescription: '0'
            },
            'method-seed': {
                type: 'number',
                describe: 'Of the method random: another number gives another order',
                defaultDescription: '0'
            },
            ...searchOptions,
            ...repairOptions,
            ...quantizeOptions,
            resume: {
                type: 'boolean',
                describe: 'Go on with the search for this output that was stopped; --no-resume begins anew',
                defaultDescription: 'asks'
            },
            order: {
                type: 'string',
                describe: "Write the order there, after each removal, in the format of the paper's repository"
            },
            report: {
                type: 'string',
                describe:
                    'Write an HTML page there that shows what came of it, and until then, what has been removed so far'
            },
            watch: {
                type: 'boolean',
                default: false,
                describe: 'The page of --report, open in a browser, shows each removal as it comes'
            },
            card: { type: 'string', describe: 'Write a model card there, for who gets the file' },
            ...taskOptions,
            task: {
                ...taskOptions.task,
                describe: `Score the model on this, before and after: ${taskOptions.task.describe}`
            },
            ...calibrationOptions,
            ...deviceOptions,
            json: jsonOption
        })
        .example('$0 prune model.gguf --ratio 0.2 -o smaller.gguf', 'a fifth of the parameters')
        .example('$0 prune model.gguf --max-increase 0.1 -o smaller.gguf', 'all that costs at most 10 % perplexity')
        .example('$0 prune model-f16.gguf --ratio 0.1 --type Q4_K_M -o smaller.gguf', 'and quantized, in one go')
        .example(
            '$0 prune model.gguf --ratio 0.2 --method blockpruner --repair none --search exact -o paper.gguf',
            'exactly the method of the paper'
        )
        .example(
            '$0 prune hf:user/repo:Q4_K_M --remove 6 --calibration mine.txt -o smaller.gguf',
            'six blocks, by your own text'
        )
        .example(
            '$0 prune model.gguf --ratio 0.2 -o smaller.gguf ' +
                '--report report.html --task arc-easy=test.jsonl --limit 400',
            'with a page of charts'
        )
        .example(
            '$0 prune model.gguf --ratio 0.2 -o smaller.gguf --report report.html --watch',
            'with a page that shows the search in a browser as it goes'
        );

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const { output, force, verify, remove, ratio, maxIncrease, blocks, method, methodSeed, report, watch, limit } =
        argv;
    const search = searchOf(argv);
    const signal = interruptSignal(NOTHING_WRITTEN);
    const tasks = await loadTasks(argv.task ?? [], { signal });
    const resume = argv.resume ?? (await askToResume(journalOf(output)));
    try {
        const result = await withProgress((progress) =>
            prune(argv.model, {
                output,
                force,
                verify,
                remove,
                ratio,
                maxIncrease,
                blocks,
                method,
                per: argv.per,
                searchType: argv.searchType,
                swaps: argv.swaps,
                methodSeed,
                orderFile: argv.order,
                report,
                watch,
                card: argv.card,
                tasks,
                limit,
                ...search,
                ...repairOf(argv),
                ...quantizeOf(argv),
                resume,
                calibration: calibrationOf(argv),
                ...deviceOf(argv),
                signal,
                onProgress: progress.update,
                onStart: (start) => {
                    progress.line(startLine(start, argv.searchType), { start, searchType: argv.searchType });
                    if (watch) {
                        const page = pathToFileURL(path.resolve(report!)).href;
                        progress.line(`the search can be watched at ${page}`, { watch: page });
                    }
                },
                onStep: (step, number, dense) => progress.line(stepLine(step, number, dense), { step, number, dense }),
                onWorkers: (workers) => progress.workers(workers)
            })
        );
        print(result, argv.json, () => pruneResultLines(result, verify));
    } catch (error) {
        throw withOutcome(error, journalOf(output), `${NOTHING_WRITTEN}; the same with --resume goes on`);
    }
}

function startLine({ dense, candidates, kept, linear, resumed }: SearchStart, type?: SearchType): string {
    const boundaries = `up to ${kept.boundaries} boundaries a sequence (${formatMebibytes(kept.bytes)} now)`;
    return (
        `dense perplexity ${formatFixed(dense, 4)}${type ? ` in ${type}` : ''}, ` +
        `${candidates} candidates${linear ? ' with linear blocks' : ''}; ` +
        `the residual stream is kept at ${boundaries}${resumed > 0 ? `; ${resumed} evaluations resumed` : ''}`
    );
}

function stepLine(step: Step, number: number, dense: number): string {
    const { perplexity, evaluations, seconds } = step;
    const found = `perplexity ${formatFixed(perplexity, 4)} (${formatFixed(perplexity / dense, 3)} × dense)`;
    const effort = `${evaluations} sequences, ${formatSeconds(seconds, 1)}`;
    return `${String(number).padStart(3)}. ${formatStep(step).padEnd(9)} ${found}, ${effort}`;
}

/**
 * Asks what to do with the journal of a stopped search, where there is one and somebody to ask: no program that reads
 * JSON.
 */
async function askToResume(journal: string): Promise<boolean | undefined> {
    if (!fs.existsSync(journal) || !process.stdin.isTTY || !process.stderr.isTTY || tellsInJson()) {
        return undefined;
    }
    const terminal = readline.createInterface({ input: process.stdin, output: process.stderr });
    const stopped = new Promise<never>((_, reject) => {
        terminal.once('SIGINT', () => reject(new Interrupted(NOTHING_WRITTEN)));
        terminal.once('close', () => reject(new Interrupted(NOTHING_WRITTEN))); // Ctrl-D
    });
    try {
        const answer = await Promise.race([
            terminal.question(`A search for this output was stopped (${journal}). Go on with it? [Y/n] `),
            stopped
        ]);
        return !/^n/i.test(answer.trim());
    } finally {
        terminal.close();
    }
}
