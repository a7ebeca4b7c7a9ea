import fs from 'node:fs';
import readline from 'node:readline/promises';
import type { Argv } from 'yargs';
import { formatBlock, formatMove } from '../runtime/blocks.js';
import { BlockprunerError } from '../errors.js';
import { journalOf, prune } from '../pipeline/prune.js';
import type { PruneResult } from '../report/prune-result.js';
import { methods } from '../methods/index.js';
import { formatScores, loadTasks, taskOptions } from './eval.js';
import {
    calibrationOf,
    calibrationOptions,
    checkDevice,
    checkInteger,
    checkNumber,
    deviceOptions,
    Interrupted,
    interruptSignal,
    jsonOption,
    mib,
    millions,
    modelArgument,
    outputOptions,
    Progress,
    repeatableTask,
    searchOptions,
    searchSettings
} from './shared.js';

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
                default: 'blockpruner' as const,
                describe:
                    'How it is decided what goes: greedily by perplexity on blocks (blockpruner) or layers (sleb), by merging layers (laco), or by ranks measured once'
            },
            'method-seed': {
                type: 'number',
                describe: 'Of the method random: another number gives another order',
                defaultDescription: '0'
            },
            ...searchOptions,
            resume: {
                type: 'boolean',
                describe: 'Go on with the search for this output that was stopped; --no-resume begins anew',
                defaultDescription: 'asks'
            },
            order: {
                type: 'string',
                describe: "Write the order there, after each removal, in the format of the paper's repository"
            },
            report: { type: 'string', describe: 'Write an HTML page there that shows what came of it' },
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
        .example(
            '$0 prune hf:user/repo:Q4_K_M --remove 6 --calibration mine.txt -o smaller.gguf',
            'six blocks, by your own text'
        )
        .example(
            '$0 prune model.gguf --ratio 0.2 -o smaller.gguf --report report.html --task arc-easy=test.jsonl --limit 400',
            'with a page of charts'
        );

/** What Ctrl-C leaves. */
export const NOTHING_WRITTEN = 'no model was written';

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    checkDevice(argv);
    checkInteger('remove', argv.remove, 1);
    checkNumber('ratio', argv.ratio);
    checkNumber('max-increase', argv['max-increase']);
    const given = [argv.remove, argv.ratio, argv['max-increase']].filter((value) => value !== undefined).length;
    if (given !== 1) {
        throw new BlockprunerError(
            'ARGUMENT',
            given === 0
                ? 'say how much to remove: --remove N, --ratio R or --max-increase X'
                : 'give only one of --remove, --ratio and --max-increase'
        );
    }
    checkInteger('method-seed', argv['method-seed'], 0);
    checkInteger('limit', argv.limit, 1);
    const signal = interruptSignal(NOTHING_WRITTEN);
    const tasks = await loadTasks(argv.task ?? [], { signal });
    const settings = searchSettings(argv);
    const resume = argv.resume ?? (await askToResume(journalOf(argv.output)));
    const progress = new Progress();
    try {
        const result = await prune(argv.model, {
            output: argv.output,
            force: argv.force,
            verify: argv.verify,
            remove: argv.remove,
            ratio: argv.ratio,
            maxIncrease: argv['max-increase'],
            blocks: argv.blocks,
            method: argv.method,
            methodSeed: argv['method-seed'],
            orderFile: argv.order,
            report: argv.report,
            tasks,
            limit: argv.limit,
            ...settings,
            resume,
            calibration: calibrationOf(argv),
            device: argv.device,
            gpuLayers: argv['gpu-layers'],
            threads: argv.threads,
            signal,
            onProgress: progress.update,
            onStart: ({ dense, candidates, kept, resumed }) =>
                progress.line(
                    `dense perplexity ${dense.toFixed(4)}, ${candidates} candidates; the residual stream is kept at up to ${kept.boundaries} boundaries a sequence (${mib(kept.bytes)} now)${resumed > 0 ? `; ${resumed} evaluations resumed` : ''}`
                ),
            onStep: ({ removed, perplexity, evaluations, seconds }, number, dense) =>
                progress.line(
                    `${String(number).padStart(3)}. ${formatMove(removed).padEnd(9)} perplexity ${perplexity.toFixed(4)} (${(perplexity / dense).toFixed(3)} × dense), ${evaluations} sequences, ${seconds.toFixed(1)} s`
                )
        });
        progress.stop();
        printResult(result, argv.json, argv.verify);
    } catch (error) {
        throw error instanceof Interrupted && fs.existsSync(journalOf(argv.output))
            ? new Interrupted(`${NOTHING_WRITTEN}; the same with --resume goes on`)
            : error;
    } finally {
        progress.stop();
    }
}

/** Asks what to do with the journal of a stopped search, where there is one and somebody to ask. */
async function askToResume(journal: string): Promise<boolean | undefined> {
    if (!fs.existsSync(journal) || !process.stdin.isTTY || !process.stderr.isTTY) {
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

/** The outcome of prune and apply: JSON on stdout, or a few lines for a person. */
export function printResult(result: PruneResult, json: boolean, verified: boolean): void {
    if (json) {
        console.log(JSON.stringify(result));
        return;
    }
    const { perplexity, parameters, bytes, tasks } = result;
    const change = (from: number, to: number) =>
        `${to >= from ? '+' : '−'}${Math.abs(100 * (to / from - 1)).toFixed(1)} %`;
    console.log(
        [
            `removed     ${result.removed.map(formatBlock).join(' ') || 'nothing'}`,
            ...(result.merged ?? []).map((sum) => `merged      ${sum}`),
            `perplexity  ${perplexity.dense.toFixed(4)} → ${perplexity.pruned.toFixed(4)} (${change(perplexity.dense, perplexity.pruned)}, calibration text)`,
            `parameters  ${millions(parameters.dense)} → ${millions(parameters.pruned)} (${change(parameters.dense, parameters.pruned)})`,
            `size        ${mib(bytes.dense)} → ${mib(bytes.pruned)} (${change(bytes.dense, bytes.pruned)})`,
            ...tasks.dense.flatMap((dense, i) => [
                `before      ${formatScores(dense)}`,
                `after       ${formatScores(tasks.pruned[i]!)}`
            ]),
            `${result.output} is written as '${result.host}'${verified ? ' and verified in the stock runtime' : ''}; ${result.seconds.toFixed(0)} s`
        ].join('\n')
    );
}
