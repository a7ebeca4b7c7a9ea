// Multiple-choice tasks: their formats, and the scores against likelihoods that are computed one ending at a time.
import fs from 'node:fs';
import path from 'node:path';
import { loadTask, Model, scoreTask, type Choice, type Question, type TaskSource } from '../../lib/index.js';
import { parseTask } from '../../lib/cli/tasks.js';
import { endingsNll } from '../../lib/evaluation/scores.js';
import { fixture, quantize, randomNumbers, temporaryFolder, tiny, withMetadata } from '../models';

const folder = temporaryFolder();
const write = (name: string, text: string) => {
    fs.writeFileSync(path.join(folder, name), text);
    return path.join(folder, name);
};
const lines = (...records: unknown[]) => records.map((record) => JSON.stringify(record)).join('\n') + '\n';
const questions = async (source: TaskSource): Promise<Question[]> => (await loadTask(source)).questions;

const arc = {
    id: 'x',
    question: {
        stem: 'What floats?',
        choices: [
            { text: 'a stone', label: 'A' },
            { text: 'a boat', label: 'B' }
        ]
    },
    answerKey: 'B'
};
const piqa = { goal: 'Boil water', sol1: 'Heat it.', sol2: 'Cool it.' };

describe('a task is read as the LM Evaluation Harness prompts it:', () => {
    test('PIQA, with labels in a file of their own or in the records', async () => {
        const expected = [
            {
                choices: ['Heat it.', 'Cool it.'].map((ending) => ({
                    context: 'Question: Boil water\nAnswer:',
                    ending: ` ${ending}`
                })),
                answer: 1
            }
        ];
        expect(
            await questions({ name: 'piqa', file: write('piqa.jsonl', lines(piqa)), labels: write('piqa.lst', '1\n') })
        ).toEqual(expected);
        expect(
            await questions({ name: 'piqa', file: write('piqa-labelled.jsonl', lines({ ...piqa, label: 1 })) })
        ).toEqual(expected);
    });

    test('WinoGrande: the ending after either option', async () => {
        const file = write(
            'winogrande.jsonl',
            lines({
                sentence: 'The cup fell off the desk since the _ was round.',
                option1: 'cup',
                option2: 'desk',
                answer: '1'
            })
        );
        expect(await loadTask({ name: 'winogrande', file })).toEqual({
            name: 'winogrande',
            normalized: false,
            questions: [
                {
                    choices: ['cup', 'desk'].map((option) => ({
                        context: `The cup fell off the desk since the ${option}`,
                        ending: ' was round.'
                    })),
                    answer: 0
                }
            ]
        });
    });

    test('HellaSwag, as JSON Lines and in the text form of llama.cpp', async () => {
        const record = {
            activity_label: 'Rowing',
            ctx_a: 'Two men [substeps] sit in a boat.  They',
            ctx_b: 'then ROW',
            endings: ['to land.', 'the [title] sky.'],
            label: '0'
        };
        expect(await questions({ name: 'hellaswag', file: write('hellaswag.jsonl', lines(record)) })).toEqual([
            {
                choices: [' to land.', ' the. sky.'].map((ending) => ({
                    context: 'Rowing: Two men sit in a boat. They Then row',
                    ending
                })),
                answer: 0
            }
        ]);
        const text = write('hellaswag.txt', 'A man\n2\na\nb\nc\nd\nA dog\n0\ne\nf\ng\nh\n');
        expect(
            (await questions({ name: 'hellaswag', file: text })).map(({ choices, answer }) => [
                choices[answer]!.context,
                choices[answer]!.ending
            ])
        ).toEqual([
            ['A man', ' c'],
            ['A dog', ' e']
        ]);
    });

    test('ARC', async () => {
        for (const name of ['arc-easy', 'arc-challenge']) {
            expect(await questions({ name, file: write('arc.jsonl', lines(arc)) })).toEqual([
                {
                    choices: ['a stone', 'a boat'].map((ending) => ({
                        context: 'Question: What floats?\nAnswer:',
                        ending: ` ${ending}`
                    })),
                    answer: 1
                }
            ]);
        }
    });

    test('any JSON Lines, by their fields', async () => {
        const file = write(
            'mine.jsonl',
            lines({ q: { text: 'Two and two:' }, options: ['four', 'five', 'six'], right: 2 })
        );
        const source = parseTask(`multiple-choice=${file},context:q.text,choices:options,answer:right`);
        expect(await loadTask(source)).toEqual({
            name: 'mine.jsonl',
            normalized: true,
            questions: [
                {
                    choices: ['four', 'five', 'six'].map((ending) => ({
                        context: 'Two and two:',
                        ending: ` ${ending}`
                    })),
                    answer: 2
                }
            ]
        });
    });
});

describe('what is wrong with a file is said by its line:', () => {
    const winogrande = { sentence: 'A _ b', option1: 'x', option2: 'y', answer: '1' };
    test.each<[string, string, string, string]>([
        [
            'a missing field',
            'arc-easy',
            lines(arc, { ...arc, question: { stem: 'x' } }),
            "line 2: field 'question.choices'"
        ],
        ['a label out of range', 'hellaswag', 'context\n4\na\nb\nc\nd\n', "line 2: the label '4' is none of 0 to 3"],
        ['a label that is no number', 'hellaswag', 'context\nfirst\na\nb\nc\nd\n', "line 2: the label 'first' is none"],
        ['no label', 'piqa', lines({ ...piqa, label: 0 }, piqa), 'line 2: it has no label'],
        [
            'an answer that is no choice',
            'arc-challenge',
            lines({ ...arc, answerKey: 'E' }),
            "line 1: the answerKey 'E' is the label of no choice"
        ],
        [
            'a sentence without a gap',
            'winogrande',
            lines(winogrande, { ...winogrande, sentence: 'none' }),
            "line 2: field 'sentence': has no _"
        ],
        ['no JSON', 'piqa', `${lines({ ...piqa, label: 0 })}{`, 'line 2: not JSON'],
        ['an empty file', 'piqa', '\n', 'is empty'],
        ['a line too many', 'hellaswag', 'a\n0\nb\nc\nd\ne\nf\n', 'has 7 lines: '],
        ['an unknown task', 'boolq', lines({}), "there is no task 'boolq': there are piqa, "]
    ])('%s', async (_, name, text, says) => {
        await expect(questions({ name, file: write('wrong.jsonl', text) })).rejects.toThrow(says);
    });

    test('labels for other questions', async () => {
        await expect(
            questions({ name: 'piqa', file: write('piqa.jsonl', lines(piqa)), labels: write('two.lst', '0\n1\n') })
        ).rejects.toThrow('two.lst has 2 labels, and');
    });

    test('a file in another encoding', async () => {
        fs.writeFileSync(path.join(folder, 'latin1.txt'), Buffer.from('caf\xe9\n0\na\nb\nc\nd\n', 'latin1'));
        await expect(questions({ name: 'hellaswag', file: path.join(folder, 'latin1.txt') })).rejects.toThrow(
            'it is not UTF-8'
        );
    });
});

describe('endings are as likely as one at a time', () => {
    const random = randomNumbers(3);
    const some = (count: number, vocabulary: number) =>
        Int32Array.from({ length: count }, () => Math.floor(((random() + 1) / 2) * vocabulary));

    // attention with and without sliding windows, and recurrent layers, whose state can't be shared
    test.each([
        ['the embedded model', ''],
        ['gemma3', 'gemma3-dense'],
        ['jamba', 'jamba-dense']
    ])('%s', async (_, name) => {
        const model = await Model.load(
            name === ''
                ? await quantize(tiny, path.join(folder, 'f32.gguf'), 'F32')
                : fixture(name, path.join(folder, `${name}.gguf`)),
            { device: 'cpu', threads: 1, cacheType: 'f32' }
        );
        const vocabulary = Math.min(model.vocabulary, 2000);
        const choices: Choice[] = Array.from({ length: 40 }).flatMap((_value, i) => {
            const context = some(1 + ((i * 7) % 50), vocabulary);
            return Array.from({ length: 1 + (i % 5) }, (_ending, k) => ({
                context,
                ending: some(1 + ((i + k) % 9), vocabulary)
            }));
        });
        // that begin alike, in contexts, in endings, in one's context and another's ending, in all
        choices.push(
            ...Array.from({ length: 60 }, (_value, i) => ({
                context: some(1 + (i % 4), 2),
                ending: some(1 + (i % 3), 2)
            }))
        );
        const blocks = await model.blocks();
        for (const skip of [[], [blocks[2]!, blocks[5]!]]) {
            const found = await model.score(choices, { skip });
            expect(found).toHaveLength(choices.length);
            for (const [i, { context, ending }] of choices.entries()) {
                const tokens = Int32Array.from([...context, ...ending]);
                const nll = await model.evaluate({ tokens, length: tokens.length }, { skip });
                const expected = nll.subarray(context.length - 1).reduce((sum, value) => sum + value, 0);
                // llama.cpp's kernels depend on the size of the batch.
                expect(Math.abs(found[i]! / expected - 1)).toBeLessThan(1e-3);
            }
        }
        model.dispose();
    });

    test('and a question that is longer than a batch', async () => {
        const model = await Model.load(tiny, { device: 'cpu', threads: 2, cacheType: 'f32' });
        const context = some(700, 2000),
            ending = some(3, 2000);
        const [nll] = await model.score([{ context, ending }]);
        const alone = await model.evaluate({ tokens: Int32Array.from([...context, ...ending]), length: 703 });
        expect(nll! / alone.subarray(699).reduce((sum, value) => sum + value, 0)).toBeCloseTo(1, 4);
        model.dispose();
    });
});

describe('scores', () => {
    let model: Model;
    beforeAll(async () => {
        model = await Model.load(tiny, { device: 'cpu', threads: 2 });
    });
    afterAll(() => model.dispose());

    test('are shares of right answers, with their standard errors', async () => {
        const task = {
            name: 'made up',
            normalized: true,
            questions: Array.from({ length: 4 }, (_, i) => ({
                choices: [' the sea.', ' zqxj vvkw.'].map((ending) => ({ context: 'The ship went to', ending })),
                answer: Number(i === 3)
            }))
        };
        expect(await scoreTask(model, task)).toMatchObject({
            task: 'made up',
            questions: 4,
            acc: { value: 0.75, stderr: 0.25 },
            acc_norm: { value: 0.75, stderr: 0.25 }
        });
        expect(await scoreTask(model, { ...task, normalized: false }, { limit: 3 })).toEqual({
            task: 'made up',
            questions: 3,
            acc: { value: 1, stderr: 0 },
            acc_norm: null
        });
    });

    test('of endings of different lengths are of the likeliest, and of the likeliest for its length', async () => {
        const long = ' ship stood on the deck and looked at the sea, and the men of the ship stood there.';
        const choices = [' zq.', long].map((ending) => ({ context: 'The captain of the', ending }));
        const task = { name: 'made up', normalized: true, questions: [{ choices, answer: 1 }] };
        const [nll] = await endingsNll(model, task);
        expect(nll![1]! / nll![0]!).toBeGreaterThan(1.5);
        expect(nll![1]! / (long.length - 1) / (nll![0]! / 3)).toBeLessThan(0.8); // the space before doesn't count
        expect(await scoreTask(model, task)).toMatchObject({ acc: { value: 0 }, acc_norm: { value: 1 } });
    });
});

test('a tokenizer that ends texts with EOS does not end contexts or endings with it', async () => {
    const file = await withMetadata(tiny, path.join(folder, 'eos.gguf'), [
        { key: 'tokenizer.ggml.add_eos_token', type: 'bool', value: true }
    ]);
    const [plain, withEos] = await Promise.all(
        [tiny, file].map((name) => Model.load(name, { device: 'cpu', threads: 1 }))
    );
    expect(await withEos!.tokenize('The sea')).toEqual(await plain!.tokenize('The sea'));
    const task = {
        name: 'made up',
        normalized: true,
        questions: [
            {
                choices: ['x', ' the sea.', ' zqx'].map((ending) => ({ context: 'The ship went to', ending })),
                answer: 1
            }
        ]
    };
    expect(await endingsNll(withEos!, task)).toEqual(await endingsNll(plain!, task));
    plain!.dispose();
    withEos!.dispose();
});
