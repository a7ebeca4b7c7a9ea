// Answers in free text: that the model writes what the stock runtime would, and what counts as right.
import fs from 'node:fs';
import path from 'node:path';
import { isRight } from '../../lib/evaluation/answers.js';
import { Model, scoreAnswers, stockGenerate } from '../../lib/index.js';
import { expectRefused, onCpu, run, runJson } from '../cli/run';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();

test('with topP 0, a model writes what the stock runtime finds likeliest', async () => {
    const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const prompts = ['The whale', 'Fellow citizens of the Senate and of the House'];
    const tokens = await Promise.all(prompts.map((prompt) => model.tokenize(prompt)));
    const length = 16 + Math.max(...tokens.map((one) => one.length));
    const written = await model.generate(tokens, { length, topP: 0 });
    for (const [i, prompt] of prompts.entries()) {
        const start = i * length + tokens[i]!.length;
        const text = model.detokenize(written.slice(start, start + 16));
        const options = { device: 'cpu', threads: 1, flashAttention: true } as const;
        expect(text.length).toBeGreaterThan(16);
        expect(text.trim()).toBe((await stockGenerate(tiny, prompt, 16, options)).trim());
    }
    expect(model.detokenize(tokens[0]!)).toBe(prompts[0]);
    expect(model.detokenize(new Int32Array(0))).toBe('');
    model.dispose();
});

test.each([
    [' Paris', ['Paris'], true],
    [' paris, of course.\nQuestion: more', ['Paris'], true],
    [' London\n\nParis', ['Paris'], false],
    [' Parisian', ['Paris'], false],
    [' 12', ['2'], false],
    [' 1, 2', ['2'], true],
    [' élan', ['lan'], false],
    ['', ['Paris'], false],
    [' The answer is eight', ['8', 'eight'], true]
])('%j to be %j: %s', (text, answers, right) => {
    expect(isRight(text, answers)).toBe(right);
});

test('the questions can be told apart by their answers', () => {
    const file = path.resolve(__dirname, '..', '..', 'models', 'questions.jsonl');
    const questions = fs
        .readFileSync(file, 'utf8')
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as { question: string; answers: string[] });
    expect(questions.length).toBeGreaterThanOrEqual(40);
    for (const { question, answers } of questions) {
        expect(answers.every((answer) => isRight(` ${answer}`, answers))).toBe(true);
        // repeating the question is no answer, but where it names the choices
        expect(isRight(question, answers)).toBe(/ is shorter| has the green/.test(question));
    }
});

test('eval --answers asks them', async () => {
    const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const score = await scoreAnswers(model);
    model.dispose();
    expect(await runJson('eval', tiny, '--answers', ...onCpu)).toEqual({ tasks: [], answers: score });
    const { stdout } = await run('eval', tiny, '--answers', ...onCpu);
    expect(stdout).toMatch(/^answers: [\d.]+ ± [\d.]+ %\n$/);
    await expectRefused(folder, ['eval', tiny, '--answers', '--skip', 'ffn.3'], "can't write");
});
