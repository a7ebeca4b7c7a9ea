import path from 'node:path';
import { z } from 'zod';
import { jsonLines, readText } from '../calibration/text.js';
import type { Model, RunOptions } from '../runtime/model.js';
import { scoreOf, type Score } from './scores.js';

/** Questions with one short answer, and the words of which an answer must have one. */
const questionsFile = path.resolve(__dirname, '..', '..', 'models', 'questions.jsonl');
const questionSchema = z.object({ question: z.string(), answers: z.array(z.string()).min(1) });

/** What a model is shown first, so that one that was never tuned knows what is wanted. */
const examples = [
    ['What is the capital of Germany?', 'Berlin'],
    ['How many wheels does a car have?', '4'],
    ['What is the opposite of old?', 'new'],
    ['Which day comes after Friday?', 'Saturday']
] as const;

/** An answer is looked for in so many tokens, and in their first line. */
const ANSWER_TOKENS = 16;

/**
 * The share of simple questions that a model answers rightly, in its own words, each word the likeliest. Multiple
 * choice hides damage that this shows: a model that can't write any more may still find the right ending likelier.
 * @throws BlockprunerError if the model can't write
 */
export async function scoreAnswers(model: Model, { signal, onProgress }: RunOptions = {}): Promise<Score> {
    const questions = jsonLines(questionsFile, await readText(questionsFile)).map(({ record }) =>
        questionSchema.parse(record)
    );
    const shown = examples.map(([question, answer]) => `Question: ${question}\nAnswer: ${answer}\n\n`).join('');
    const prompts: Int32Array[] = [];
    for (const { question } of questions) {
        prompts.push(await model.tokenize(`${shown}Question: ${question}\nAnswer:`, signal));
    }
    const length = Math.max(...prompts.map((prompt) => prompt.length)) + ANSWER_TOKENS;
    const written = await model.generate(prompts, { length, topP: 0, signal, onProgress });
    return scoreOf(
        questions.map(({ answers }, i) => {
            const start = i * length + prompts[i]!.length;
            return Number(isRight(model.detokenize(written.slice(start, start + ANSWER_TOKENS)), answers));
        })
    );
}

/** Whether the first line of a text has one of these words. */
export function isRight(text: string, answers: readonly string[]): boolean {
    const words = text
        .trim()
        .split('\n')[0]!
        .toLowerCase()
        .split(/[^\p{L}\p{N}]+/u);
    return answers.some((answer) => words.includes(answer.toLowerCase()));
}
