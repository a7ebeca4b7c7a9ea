// Zero-shot scores against PyTorch (scores.py), question by question, in F32. From the root of the repository, after
// `npm run build` and `pip install torch gguf tokenizers numpy`:
//
//     node test/reference/scores.mjs MODEL.gguf --task piqa=valid.jsonl,valid-labels.lst --task hellaswag=hellaswag.txt
//
// The model may be of any type that llama.cpp requantizes, of architecture llama with GPT-2's or SmolLM2's tokenizer.
// It ends with 1 if a choice differs that rounding doesn't explain.
import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import blockpruner from '../../dist/index.js';
import taskArguments from '../../dist/cli/tasks.js';
import scores from '../../dist/evaluation/scores.js';

const { loadTask, Model, scoreTask } = blockpruner;
const {
    task: tasks,
    limit,
    threads,
    _: [source]
} = await yargs(hideBin(process.argv))
    .usage('node test/reference/scores.mjs MODEL.gguf --task BENCHMARK=FILE …')
    .demandCommand(1, 1, 'give one model')
    .options({
        task: {
            type: 'string',
            array: true,
            nargs: 1,
            demandOption: true,
            describe: 'As in blockpruner eval: piqa, winogrande, hellaswag, arc-easy, arc-challenge'
        },
        limit: { type: 'number', default: 100, describe: 'The first so many questions of each' },
        threads: { type: 'number', default: 1, describe: 'CPU threads' }
    })
    .strict()
    .wrap(120)
    .parseAsync();

const lowest = (values) => values.indexOf(Math.min(...values));
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-scores-'));
try {
    const file = path.join(folder, 'f32.gguf');
    // compiled with the other programs of the tests: cmake --build build/cmake --target test-tools
    execFileSync(path.resolve(import.meta.dirname, '../../build/cmake/quantize'), [source, file, '0'], {
        stdio: 'ignore'
    });
    const model = await Model.load(file, { device: 'cpu', threads, cacheType: 'f32' });
    const rows = [];
    for (const text of tasks) {
        const { name, file: questions, labels } = taskArguments.parseTask(text);
        const python = await promisify(execFile)(
            'python3',
            [
                path.join(import.meta.dirname, 'scores.py'),
                file,
                name,
                questions,
                ...(labels ? [labels] : []),
                '--limit',
                String(limit),
                '--threads',
                String(threads)
            ],
            { maxBuffer: 2 ** 30 }
        );
        const theirs = JSON.parse(python.stdout);
        const task = await loadTask({ name, file: questions, labels });
        const ours = await scoreTask(model, task, { limit });
        const nll = await scores.endingsNll(model, task, { limit });

        const difference = Math.max(
            ...theirs.questions.flatMap((question, i) =>
                question.nll.map((value, k) => Math.abs(nll[i][k] / value - 1))
            )
        );
        const differing = (value) =>
            theirs.questions.filter(
                (question, i) => lowest(question.nll.map(value(question))) !== lowest(nll[i].map(value(question)))
            ).length;
        rows.push({
            task: name,
            questions: theirs.questions.length,
            'acc, PyTorch': theirs.acc,
            'acc, blockpruner': ours.acc.value,
            'acc_norm, PyTorch': ours.acc_norm && theirs.acc_norm,
            'acc_norm, blockpruner': ours.acc_norm && ours.acc_norm.value,
            'other choices': differing(() => (value) => value),
            'other choices by length': differing(
                ({ length }) =>
                    (value, k) =>
                        value / length[k]
            ),
            'largest relative difference of an NLL': Number(difference.toExponential(1))
        });
        console.error(rows.at(-1));
    }
    model.dispose();
    console.table(rows);
    process.exitCode = rows.some((row) => row['other choices'] + row['other choices by length'] > 0) ? 1 : 0;
} finally {
    fs.rmSync(folder, { recursive: true });
}
