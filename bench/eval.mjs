// Compares scoring many endings at once with one ending at a time: `npm run bench:eval -- --help`. They take turns, on
// the same few questions each, so that a machine that becomes slower slows down both.
import { mean, median, sampleStandardDeviation } from 'simple-statistics';
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import blockpruner from '../dist/index.js';
import taskArguments from '../dist/cli/tasks.js';
import scores from '../dist/evaluation/scores.js';
import { describe, options, setting, write } from './shared.mjs';

const { loadTask, Model } = blockpruner;

const argv = await yargs(hideBin(process.argv))
    .scriptName('npm run bench:eval --')
    .usage(
        '$0 --task BENCHMARK=FILE … [options]\n\nCompares ways to score endings and writes bench/results/NAME.md and .json'
    )
    .options({
        ...options,
        name: { type: 'string', default: 'eval-embedded', describe: 'Name of the results' },
        task: { type: 'string', array: true, nargs: 1, demandOption: true, describe: 'As in blockpruner eval' },
        turns: { type: 'number', default: 6, describe: 'Turns of each way on each task' },
        questions: { type: 'number', default: 20, describe: 'Questions in a turn' }
    })
    .strict()
    .wrap(120)
    .parseAsync();

const model = await Model.load(argv.model, { device: argv.device, threads: argv.threads });

const ways = {
    batched: (task) => scores.endingsNll(model, task),
    // what a harness does that knows nothing of batches: a tokenisation and an evaluation for each
    async single(task) {
        const nll = [];
        for (const { choices } of task.questions) {
            const values = [];
            for (const choice of choices) {
                values.push(
                    ...(
                        await scores.endingsNll(model, { ...task, questions: [{ choices: [choice], answer: 0 }] })
                    ).flat()
                );
            }
            nll.push(values);
        }
        return nll;
    }
};

const results = [];
for (const text of argv.task) {
    const task = await loadTask(taskArguments.parseTask(text));
    const turn = (number) => ({
        ...task,
        questions: task.questions.slice(number * argv.questions, (number + 1) * argv.questions)
    });
    const used = task.questions.slice(0, argv.turns * argv.questions);
    await ways.batched(turn(0)); // the first takes memory
    const seconds = { batched: [], single: [] },
        cpuSeconds = { batched: [], single: [] };
    let same = 0;
    for (let number = 0; number < argv.turns; number++) {
        const questions = turn(number);
        const found = {};
        for (const way of number % 2 === 0 ? ['batched', 'single'] : ['single', 'batched']) {
            const started = performance.now(),
                cpu = process.cpuUsage();
            found[way] = await ways[way](questions);
            seconds[way].push((performance.now() - started) / 1000);
            const { user, system } = process.cpuUsage(cpu);
            cpuSeconds[way].push((user + system) / 1e6);
        }
        const choice = (values) => values.indexOf(Math.min(...values));
        same += questions.questions.filter((_, i) => choice(found.batched[i]) === choice(found.single[i])).length;
    }
    const ratiosOf = ({ single, batched }) => single.map((value, i) => value / batched[i]);
    results.push({
        task: task.name,
        questions: used.length,
        ...(await tokensOf(used)),
        same,
        seconds,
        ratios: ratiosOf(seconds),
        cpuSeconds,
        cpuRatios: ratiosOf(cpuSeconds)
    });
    console.error(
        `${task.name}: ${ratiosOf(seconds)
            .map((ratio) => ratio.toFixed(2))
            .join(' ')}`
    );
}
model.dispose();

/**
 * Counts the tokens to compute, with each ending by itself, and with what the endings of a turn begin with alike
 * computed once.
 */
async function tokensOf(questions) {
    let endings = 0,
        tokens = 0,
        distinct = 0;
    for (let from = 0; from < questions.length; from += argv.questions) {
        const seen = new Set();
        for (const { context, ending } of questions
            .slice(from, from + argv.questions)
            .flatMap(({ choices }) => choices)) {
            const sequence = await model.tokenize(context + ending);
            for (let length = 1; length < sequence.length; length++) {
                // the last predicts nothing
                seen.add(sequence.subarray(0, length).join());
            }
            endings++;
            tokens += sequence.length - 1;
        }
        distinct += seen.size;
    }
    return { endings, tokens, distinct };
}

const report = { ...setting(argv), turns: argv.turns, questions: argv.questions, results };
console.log(write(argv.name, report, markdown(report)));

function markdown({ model, turns, questions, machine, date, results }) {
    const sum = (values) => values.reduce((a, b) => a + b, 0);
    const spread = (ratios) =>
        `**${median(ratios).toFixed(2)}** (${mean(ratios).toFixed(2)} ± ${sampleStandardDeviation(ratios).toFixed(2)})`;
    const rows = results.map(
        ({ task, endings, tokens, distinct, same, seconds, ratios, cpuRatios, questions: all }) =>
            `| ${task} | ${endings} | ${((1000 * sum(seconds.single)) / endings).toFixed(1)} | ${((1000 * sum(seconds.batched)) / endings).toFixed(1)} | ${spread(ratios)} | ${spread(cpuRatios)} | ${(tokens / distinct).toFixed(2)} | ${same} of ${all} |`
    );
    return `# Scoring endings: ${model}

${turns} turns of ${questions} questions of each task; ${date}.
${describe(machine)}

| task | endings | ms an ending, one at a time | ms an ending, batched | times faster | times less CPU time | times fewer tokens | same choice |
|---|---|---|---|---|---|---|---|
${rows.join('\n')}

Medians over the turns, and in brackets mean ± standard deviation. Both ways tokenise, compute only the output of endings'
tokens, and run in turns in one process. Other work on the machine makes times longer, and CPU time less so. Times fewer tokens:
how many tokens there are over how many are left when what endings begin with is computed once.
`;
}
