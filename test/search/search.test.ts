// The searches on made-up NLLs, the journal, and the order files.
import fs from 'node:fs';
import path from 'node:path';
import {
    formatBlock,
    formatMove,
    formatStep,
    movesAfter,
    parseBlocks,
    searchOrder,
    without,
    type Block,
    type CandidateEvaluator,
    type Move,
    type SearchMode,
    type SearchOptions
} from '../../lib/index.js';
import { Journal } from '../../lib/search/journal.js';
import { randomNumbers, temporaryFolder } from '../models';

const names = (blocks: readonly Block[]) => blocks.map(formatBlock).join('+');
/** Single blocks go, until so many are gone. */
const singly =
    (candidates: readonly Block[], most = Infinity) =>
    (removed: readonly Block[]) =>
        removed.length < most ? without(candidates, removed).map((block) => [block]) : [];

/** What a block's removal costs; where that changes, by how many blocks are gone in all. */
type Costs = Record<string, number | number[]>;

/**
 * A search with one sequence of one token, in which a block's removal adds its cost to the NLL; the dense model's NLL
 * is 2.
 */
async function search(costs: Costs, { most, ...options }: Partial<SearchOptions> & { most?: number } = {}) {
    const calls: string[] = [];
    const costOf = (block: Block, gone: number) => [costs[formatBlock(block)]!].flat().slice(0, gone).at(-1)!;
    const result = await searchOrder(
        {
            sequences: 1,
            devices: 1,
            evaluate: (skip) => {
                calls.push(names(skip));
                return Promise.resolve([
                    Float32Array.of(skip.reduce((sum, block) => sum + costOf(block, skip.length), 2))
                ]);
            },
            remove: (removed) => void calls.push(`(${names(removed)})`)
        },
        { moves: singly(parseBlocks(Object.keys(costs).join()), most), mode: 'full', ...options }
    );
    return { ...result, calls, order: names(result.steps.flatMap(({ removed }) => removed)) };
}

describe.each(['full', 'exact', 'race'] as const)('searchOrder (%s)', (mode) => {
    test('starts each step from what is left', async () => {
        const { calls, dense, steps, order } = await search(
            { 'attn.0': 4, 'ffn.0': 2, 'attn.1': 3, 'ffn.1': 5 },
            { mode, most: 2 }
        );
        expect(order).toBe('ffn.0+attn.1');
        expect(dense).toBe(Math.exp(2));
        expect(steps.map(({ perplexity }) => perplexity)).toEqual([Math.exp(4), Math.exp(7)]);
        const first = calls.indexOf('(ffn.0)');
        expect(calls[0]).toBe('');
        expect(calls.slice(1, first).sort()).toEqual(['attn.0', 'attn.1', 'ffn.0', 'ffn.1']);
        expect(calls.slice(first + 1, -1).sort()).toEqual(['ffn.0+attn.0', 'ffn.0+attn.1', 'ffn.0+ffn.1']);
        expect(calls.at(-1)).toBe('(ffn.0+attn.1)');
    });

    test('removes the earlier one of equals: attention by layer, then FFN', async () => {
        expect((await search({ 'ffn.0': 2, 'ffn.1': 2, 'attn.10': 2, 'attn.2': 2 }, { mode })).order).toBe(
            'attn.2+attn.10+ffn.0+ffn.1'
        );
    });

    test('removes the earlier one of equals also where the later one is tried first', async () => {
        // the later one cost less before
        const costs = { 'attn.0': [3, 1], 'ffn.0': [2, 1], 'ffn.1': 0.5 };
        expect((await search(costs, { mode })).order).toBe('ffn.1+attn.0+ffn.0');
    });

    test('removes the block that makes the model better', async () => {
        expect((await search({ 'attn.0': 0.5, 'ffn.0': -0.5 }, { mode })).order).toBe('ffn.0+attn.0');
    });

    test('never removes a block without which the perplexity is no number', async () => {
        const { order, steps } = await search({ 'attn.0': NaN, 'attn.1': 2 }, { mode, most: 1 });
        expect([order, steps[0]!.perplexity]).toEqual(['attn.1', Math.exp(4)]);
        await expect(search({ 'attn.0': NaN, 'attn.1': Infinity }, { mode })).rejects.toThrow(
            'after 0 removals, the perplexity is not finite'
        );
    });

    test('reports a step as a block without anything else', async () => {
        const [step] = (
            await search({ 'attn.3': 2 }, { mode, moves: singly([{ kind: 'attn', layer: 3, parameters: 5 } as Block]) })
        ).steps;
        expect(step!.removed).toEqual([{ kind: 'attn', layer: 3 }]);
        expect((await search({}, { mode, moves: () => [] })).steps).toEqual([]);
    });

    test('stops before the highest perplexity is passed', async () => {
        const maxPerplexity = () => Math.exp(3);
        expect((await search({ 'attn.0': 1, 'ffn.0': 0.5, 'ffn.1': 0.25 }, { mode, maxPerplexity })).order).toBe(
            'ffn.1+ffn.0'
        );
        const justAtIt = { 'attn.0': 1, 'ffn.0': 0 };
        expect((await search(justAtIt, { mode, maxPerplexity })).order).toBe('ffn.0+attn.0');
        expect((await search({ 'attn.0': 1.125 }, { mode, maxPerplexity })).order).toBe('');
    });

    test('tells what was found of every candidate', async () => {
        const { steps } = await search({ 'ffn.0': 2, 'attn.0': 4, 'attn.1': 3, 'ffn.1': NaN }, { mode, most: 2 });
        const found = steps.map(({ candidates }) =>
            candidates.map(({ move, perplexity, sequences }) => [formatMove(move), perplexity, sequences])
        );
        expect(found).toEqual([
            [
                ['attn.0', Math.exp(6), 1],
                ['attn.1', Math.exp(5), 1],
                ['ffn.0', Math.exp(4), 1],
                ['ffn.1', null, 1]
            ],
            [
                ['attn.0', Math.exp(8), 1],
                ['attn.1', Math.exp(7), 1],
                ['ffn.1', null, 1]
            ]
        ]);
    });

    test('removes what costs least for its worth', async () => {
        const worth = ([block]: Move, removed: readonly Block[]) =>
            block!.kind === 'ffn' && removed.length === 0 ? 3 : 1;
        const { order, steps } = await search({ 'attn.0': 1, 'ffn.0': 2, 'ffn.1': 4 }, { mode, worth });
        expect(order).toBe('ffn.0+attn.0+ffn.1');
        expect(steps[0]!.perplexity).toBe(Math.exp(4));
    });

    test('gives the NLL of the last model', async () => {
        expect((await search({ 'attn.0': 1, 'ffn.0': 0.5 }, { mode, maxPerplexity: () => Math.exp(2.5) })).nll).toEqual(
            [Float32Array.of(2.5)]
        );
    });

    test('tells its progress', async () => {
        const told: unknown[] = [];
        await search(
            { 'attn.0': 2, 'ffn.0': 3 },
            {
                mode,
                onStart: (dense) => told.push(dense),
                onEvaluation: (step, decided, candidates) => told.push(`${step}: ${decided}/${candidates}`),
                onStep: ({ removed }, number) => told.push(`${number}. ${formatMove(removed)}`)
            }
        );
        expect(told[0]).toBe(Math.exp(2));
        expect(told.filter((line) => /^\d\. |2\/2|1\/1/.test(String(line)))).toEqual([
            '1: 2/2',
            '1. attn.0',
            '2: 1/1',
            '2. ffn.0'
        ]);
    });

    test('refuses a model whose perplexity is no number', async () => {
        const evaluator: CandidateEvaluator = {
            sequences: 1,
            devices: 1,
            evaluate: () => Promise.resolve([Float32Array.of(NaN)]),
            remove: () => undefined
        };
        await expect(searchOrder(evaluator, { moves: singly(parseBlocks('attn.0')), mode })).rejects.toThrow(
            'perplexity on the calibration text is Infinity'
        );
    });
});

describe.each(['full', 'exact', 'race'] as const)('swaps (%s)', (mode) => {
    const candidates = parseBlocks('attn.0,attn.1,attn.2,attn.3,attn.4');
    // By themselves, blocks cost 1, 2, …; two that are gone together cost what is said here.
    const together: Record<string, number> = { '01': 5, '02': 6, '03': 4.5, '12': 5, '13': 3, '23': 7, '24': 2.5 };
    const costOf = (skip: readonly Block[]) => {
        const layers = skip.map(({ layer }) => layer).sort();
        return skip.length < 2 ? (layers[0] ?? -1) + 1 : (together[layers.join('')] ?? 9);
    };
    const run = (rounds: number) =>
        searchOrder(
            {
                sequences: 1,
                devices: 1,
                evaluate: (skip) => Promise.resolve([Float32Array.of(2 + costOf(skip))]),
                remove: () => undefined
            },
            {
                moves: singly(candidates, 2),
                mode,
                swaps: { rounds, moves: (others) => singly(candidates, 2)(others) }
            }
        );

    test('put in the place of each removal what is better beside all others', async () => {
        const [before, after] = [await run(0), await run(1)];
        expect(before.steps.map(formatStep)).toEqual(['attn.0', 'attn.3']);
        // attn.0 gives way to attn.1; attn.3 is the best that there is beside it
        expect(after.steps.map(formatStep)).toEqual(['attn.0', 'attn.3', 'attn.1 for attn.0']);
        expect(after.steps.map(({ perplexity }) => Math.log(perplexity))).toEqual(
            [3, 6.5, 5].map((nll) => expect.closeTo(nll) as number)
        );
        expect(movesAfter(after.steps).map(formatMove)).toEqual(['attn.1', 'attn.3']);
        expect(after.nll).toEqual([Float32Array.of(5)]);
    });

    test('look again at an empty gap that has joined one with a linear block since', async () => {
        const empty = { kind: 'attn', layer: 0, empty: true } as const;
        const { steps } = await searchOrder(
            {
                sequences: 1,
                devices: 1,
                evaluate: (skip) => Promise.resolve([Float32Array.of(2 + costOf(skip))]),
                remove: () => undefined
            },
            {
                moves: (removed) => [[[empty]], [parseBlocks('attn.3')], []][removed.length]!,
                mode,
                swaps: {
                    rounds: 1,
                    moves: (others) => singly(candidates, 2)(others) // never as an empty one
                }
            }
        );
        expect(steps.map(formatStep)).toEqual(['attn.0 (empty gap)', 'attn.3', 'attn.1 for attn.0 (empty gap)']);
    });

    test('end when a round changes nothing', async () => {
        expect((await run(50)).steps.map(formatStep)).toEqual((await run(2)).steps.map(formatStep));
    });
});

/**
 * An evaluator of a model that doesn't exist: each token's NLL is the sum of what each removed block costs there. Costs
 * are heavy-tailed around the block's own, differ from sequence to sequence, and change with what was removed before.
 */
function madeUp({
    blocks,
    sequences = 16,
    tokens = 64,
    close = 1,
    alike = 0.02,
    seed
}: {
    blocks: number;
    sequences?: number;
    tokens?: number;
    close?: number;
    alike?: number;
    seed: number;
}) {
    const candidates = parseBlocks(
        Array.from({ length: blocks }, (_, i) => `${i % 2 ? 'ffn' : 'attn'}.${i >> 1}`).join()
    );
    const random = randomNumbers(seed);
    const bell = () => random() + random() + random();
    const field = (scale: number) =>
        Array.from({ length: sequences }, () => Float32Array.from({ length: tokens }, () => scale * bell() ** 3));
    const base = field(0.5).map((sequence) => sequence.map((value) => 3 + Math.abs(value)));
    const own = new Map(
        candidates.map((block, i) => {
            const mean = 0.05 * close * (1 + i * 0.37 + 0.3 * random());
            const noise = field(0.02 + 0.1 * mean);
            return [
                formatBlock(block),
                noise.map((sequence) => {
                    const ofSequence = alike * random();
                    return sequence.map((value) => mean + ofSequence + value);
                })
            ];
        })
    );
    let sequencesAsked = 0;
    const evaluator: CandidateEvaluator = {
        sequences,
        devices: 1,
        evaluate: (skip, asked) => {
            sequencesAsked += asked.length;
            return Promise.resolve(
                asked.map((sequence) =>
                    base[sequence]!.map((value, token) =>
                        skip.reduce(
                            (sum, block, i) => sum + own.get(formatBlock(block))![sequence]![token]! * (1 + 0.02 * i),
                            value
                        )
                    )
                )
            );
        },
        remove: () => undefined
    };
    return { candidates, evaluator, asked: () => sequencesAsked };
}

async function orderOf(
    model: ReturnType<typeof madeUp>,
    mode: SearchMode,
    removals: number,
    options: Partial<SearchOptions> = {}
) {
    const { steps } = await searchOrder(model.evaluator, {
        moves: singly(model.candidates, removals),
        mode,
        ...options
    });
    return {
        order: names(steps.flatMap(({ removed }) => removed)),
        perplexities: steps.map(({ perplexity }) => perplexity),
        asked: model.asked()
    };
}

describe('the faster searches', () => {
    test.each([1, 2, 3, 4, 5, 6])('find the order of the full one, with fewer evaluations (model %i)', async (seed) => {
        const of = (mode: SearchMode) => orderOf(madeUp({ blocks: 24, seed }), mode, 8);
        const [full, exact, race] = [await of('full'), await of('exact'), await of('race')];
        expect({ ...exact, asked: 0 }).toEqual({ ...full, asked: 0 });
        expect({ ...race, asked: 0 }).toEqual({ ...full, asked: 0 });
        expect(exact.asked).toBeLessThan(full.asked);
        expect(race.asked).toBeLessThan(full.asked / 3);
    });

    test.each([1, 2, 3, 4])('find it also where blocks differ in worth (model %i)', async (seed) => {
        const worth = ([block]: Move) => (block!.kind === 'attn' ? 0.5 : 3);
        const of = (mode: SearchMode, options?: Partial<SearchOptions>) =>
            orderOf(madeUp({ blocks: 24, seed }), mode, 8, options);
        const [full, exact, race] = [
            await of('full', { worth }),
            await of('exact', { worth }),
            await of('race', { worth })
        ];
        expect(full.order).not.toBe((await of('full')).order);
        expect({ ...exact, asked: 0 }).toEqual({ ...full, asked: 0 });
        expect({ ...race, asked: 0 }).toEqual({ ...full, asked: 0 });
        expect(race.asked).toBeLessThan(full.asked / 2);
    });

    // tokens of a sequence are alike by 0.003 in both
    test.each([
        [32, 0.02],
        [512, 0.003]
    ])(
        'race is wrong no more often than its confidence allows, where candidates are alike (sequences of %i tokens)',
        async (tokens, alike) => {
            const runs = tokens > 100 ? 60 : 150,
                confidence = 0.9;
            let wrong = 0,
                asked = 0,
                full = 0;
            for (let seed = 100; seed < 100 + runs; seed++) {
                const of = (mode: SearchMode) =>
                    orderOf(
                        madeUp({ blocks: 8, sequences: 12, tokens, close: tokens > 100 ? 0.005 : 0.02, alike, seed }),
                        mode,
                        1,
                        { confidence }
                    );
                const [race, all] = [await of('race'), await of('full')];
                wrong += Number(race.order !== all.order);
                asked += race.asked;
                full += all.asked;
            }
            expect(wrong / runs).toBeLessThan(1 - confidence);
            expect(asked).toBeLessThan(full); // or it would be no test: it did drop candidates
        }
    );

    test.each(['exact', 'race'] as const)('%s estimates the perplexity of candidates that it stopped', async (mode) => {
        const step = async (how: SearchMode) => {
            const { candidates, evaluator } = madeUp({ blocks: 24, seed: 1 });
            return (await searchOrder(evaluator, { moves: singly(candidates, 1), mode: how })).steps[0]!;
        };
        const [full, found] = [await step('full'), await step(mode)];
        expect(found.candidates.map(({ move }) => move)).toEqual(full.candidates.map(({ move }) => move));
        expect(found.candidates.reduce((sum, { sequences }) => sum + sequences, 0)).toBe(found.evaluations);
        const stopped = found.candidates.filter(({ sequences }) => sequences < 16);
        expect(stopped.length).toBeGreaterThan(8);
        for (const [i, { perplexity, sequences }] of found.candidates.entries()) {
            const exact = full.candidates[i]!;
            expect(exact.sequences).toBe(16);
            expect(perplexity! / exact.perplexity!).toBeCloseTo(1, sequences < 16 ? 1 : 12);
        }
        expect(found.candidates.find(({ move }) => formatMove(move) === formatMove(found.removed))).toMatchObject({
            perplexity: found.perplexity,
            sequences: 16
        });
    });

    test('exact stops a candidate only when it can no longer win', async () => {
        // the first sequence is by far the worst for the one that wins
        const nll: Record<string, number[]> = { '': [4, 1, 1, 1], 'attn.0': [6, 1, 1, 1], 'attn.1': [4, 3, 3, 3] };
        const asked: string[] = [];
        const { steps } = await searchOrder(
            {
                sequences: 4,
                devices: 1,
                evaluate: (skip, sequences) => {
                    asked.push(`${names(skip)}: ${sequences.join()}`);
                    return Promise.resolve(sequences.map((sequence) => Float32Array.of(nll[names(skip)]![sequence]!)));
                },
                remove: () => undefined
            },
            { moves: singly(parseBlocks('attn.1,attn.0'), 1), mode: 'exact' }
        );
        expect(steps[0]!.removed).toEqual([{ kind: 'attn', layer: 0 }]);
        expect(asked).toEqual([
            ': 0,1,2,3',
            'attn.0: 0',
            'attn.0: 1',
            'attn.0: 2',
            'attn.0: 3',
            'attn.1: 0',
            'attn.1: 1',
            'attn.1: 2'
        ]);
    });

    describe('with several devices, or sequences at once', () => {
        interface Call {
            candidate: string;
            sequences: number;
            /** How many candidates were being evaluated then, this one counted; of first looks, none. */
            together: number;
        }

        // blocks that cost so much that exact can stop some of them before the last of its large batches
        const made = { blocks: 20, sequences: 64, tokens: 16, close: 5, seed: 9 };

        /** Searches with four devices, or four sequences at once on one, and notes each evaluation of a candidate. */
        async function searchOnFour(mode: SearchMode, four: 'devices' | 'together' = 'devices') {
            const model = madeUp(made);
            const calls: Call[] = [];
            let running = 0;
            const evaluator: CandidateEvaluator = {
                ...model.evaluator,
                [four]: 4,
                evaluate: async (skip, sequences) => {
                    const candidate = names(skip);
                    const isFirst = !calls.some((call) => call.candidate === candidate);
                    running += Number(!isFirst);
                    calls.push({ candidate, sequences: sequences.length, together: isFirst ? 0 : running });
                    await new Promise((resolve) => setImmediate(resolve));
                    running -= Number(!isFirst);
                    return model.evaluator.evaluate(skip, sequences);
                }
            };
            const found = await orderOf({ ...model, evaluator }, mode, 6);
            return { ...found, calls: calls.filter(({ candidate }) => candidate !== '') };
        }

        test.each([
            ['exact', 'devices'],
            ['race', 'devices'],
            ['exact', 'together'],
            ['race', 'together']
        ] as const)('%s finds the same with four %s', async (mode, four) => {
            const one = await orderOf(madeUp(made), 'full', 6);
            const { order, perplexities, asked } = await searchOnFour(mode, four);
            expect({ order, perplexities }).toEqual({ order: one.order, perplexities: one.perplexities });
            expect(asked).toBeLessThan(one.asked); // it still stops or drops candidates
        });

        test.each([
            ['exact', 'devices'],
            ['exact', 'together'],
            ['race', 'together']
        ] as const)('%s has work for all four %s in every call', async (mode, four) => {
            const { calls } = await searchOnFour(mode, four);
            expect(Math.min(...calls.map(({ sequences }) => sequences))).toBeGreaterThanOrEqual(4);
        });

        test('race looks at as many candidates at once as there are devices, also after its first looks', async () => {
            const { calls } = await searchOnFour('race');
            expect(Math.max(...calls.map(({ together }) => together))).toBe(4);
        });
    });

    test('race looks at every candidate in every removal', async () => {
        const model = madeUp({ blocks: 12, seed: 7 });
        const seen: Set<string>[] = [new Set()];
        await searchOrder(
            {
                ...model.evaluator,
                evaluate: (skip, ...rest) => {
                    seen.at(-1)!.add(formatBlock(skip.at(-1) ?? { kind: 'attn', layer: 99 }));
                    return model.evaluator.evaluate(skip, ...rest);
                },
                remove: () => void seen.push(new Set())
            },
            { moves: singly(model.candidates, 4) }
        );
        expect(seen.slice(0, 4).map(({ size }) => size)).toEqual([13, 11, 10, 9]);
    });
});

describe('the journal', () => {
    const folder = temporaryFolder();
    const inputs = { model: 'm.gguf', calibration: 'text, 4 sequences' };
    let file: string;
    beforeEach(() => {
        file = path.join(fs.mkdtempSync(path.join(folder, 'journal-')), 'out.journal');
    });

    /** Searches with a journal until it made so many evaluations. */
    async function searchWith(mode: SearchMode, resume: boolean, most = Infinity) {
        const model = madeUp({ blocks: 10, sequences: 8, tokens: 16, seed: 3 });
        let fresh = 0;
        const journal = Journal.open(
            {
                ...model.evaluator,
                evaluate: (skip, sequences) => {
                    if ((fresh += sequences.length) > most) {
                        return Promise.reject(new Error('killed'));
                    }
                    return model.evaluator.evaluate(skip, sequences);
                }
            },
            file,
            inputs,
            resume
        );
        const { steps, nll } = await searchOrder(journal, { moves: singly(model.candidates, 5), mode }).finally(() =>
            journal.close()
        );
        return {
            order: names(steps.flatMap(({ removed }) => removed)),
            perplexities: steps.map(({ perplexity }) => perplexity),
            nll,
            fresh
        };
    }

    test.each(['exact', 'race'] as const)(
        'lets a search go on where it was stopped, to the same end (%s)',
        async (mode) => {
            const whole = await searchWith(mode, false);
            for (const most of [9, 20, 41, 70]) {
                await expect(searchWith(mode, false, most)).rejects.toThrow('killed');
                const resumed = await searchWith(mode, true);
                expect({ ...resumed, fresh: 0 }).toEqual({ ...whole, fresh: 0 });
                expect(resumed.fresh).toBeLessThan(whole.fresh);
            }
            expect((await searchWith(mode, true)).fresh).toBe(0); // all is there
        }
    );

    test('is only ever appended to', async () => {
        await expect(searchWith('race', false, 30)).rejects.toThrow('killed');
        const before = fs.readFileSync(file, 'utf8');
        await searchWith('race', true);
        expect(fs.readFileSync(file, 'utf8').startsWith(before)).toBe(true);
    });

    test('survives a last line that was cut off', async () => {
        const whole = await searchWith('race', false);
        await expect(searchWith('race', false, 30)).rejects.toThrow('killed');
        const stopped = fs.readFileSync(file);
        const evaluated = stopped.toString().trimEnd().split('\n').length - 1;
        for (const cut of [1, 2, 30]) {
            fs.writeFileSync(file, stopped.subarray(0, -cut));
            const resumed = await searchWith('race', true);
            expect([resumed.order, resumed.fresh]).toEqual([whole.order, whole.fresh - (evaluated - 1)]);
        }
        fs.truncateSync(file, 5); // not even its first line
        expect(await searchWith('race', true)).toEqual(whole);
    });

    test('survives pages that a power cut left as zeros', async () => {
        const whole = await searchWith('race', false);
        await expect(searchWith('race', false, 30)).rejects.toThrow('killed');
        const stopped = fs.readFileSync(file);
        const lines = stopped.toString().trimEnd().split('\n');
        const middle = stopped.indexOf('\n', stopped.length / 2);
        for (const [from, to, lost] of [
            [middle - 20, middle + 20, 2], // with the end of a line
            [middle + 10, middle + 20, 1],
            [stopped.length - 20, stopped.length, 1]
        ] as const) {
            fs.writeFileSync(file, Buffer.from(stopped).fill(0, from, to));
            const resumed = await searchWith('race', true);
            expect([resumed.order, resumed.fresh]).toEqual([whole.order, whole.fresh - (lines.length - 1 - lost)]);
            expect((await searchWith('race', true)).fresh).toBe(0);
        }
    });

    test('may have been through an editor that ends lines as Windows does', async () => {
        const whole = await searchWith('race', false);
        await expect(searchWith('race', false, 30)).rejects.toThrow('killed');
        const stopped = fs.readFileSync(file, 'utf8');
        const evaluated = stopped.trimEnd().split('\n').length - 1;
        fs.writeFileSync(file, stopped.replaceAll('\n', '\r\n'));
        expect(await searchWith('race', true)).toEqual({ ...whole, fresh: whole.fresh - evaluated });
        expect(await searchWith('race', true)).toEqual({ ...whole, fresh: 0 });
    });

    test('goes if nothing was evaluated', async () => {
        await expect(searchWith('race', false, 0)).rejects.toThrow('killed');
        expect(fs.existsSync(file)).toBe(false);
    });

    test('of other inputs is refused, and the difference named', async () => {
        await searchWith('race', false);
        const open = (others: Record<string, string>) => () =>
            Journal.open(madeUp({ blocks: 2, seed: 1 }).evaluator, file, others, true);
        expect(open({ ...inputs, model: 'other.gguf' })).toThrow(
            `${file} is of a search with another model (m.gguf, now other.gguf): ` +
                'give the same, or begin anew with `resume: false`'
        );
        expect(open({ ...inputs, calibration: 'x', device: 'cpu' })).toThrow(
            'another calibration (text, 4 sequences, now x), device (none, now cpu)'
        );
    });

    test.each([
        ['no JSON', '{"skip":\n', 'line 2 is damaged'],
        ['another format', '{"skip":"","sequence":0}\n', 'line 2 is damaged'],
        ['values that are not base64', '{"skip":"","sequence":0,"nll":"%%%%"}\n', 'line 2 is damaged'],
        ['no values', '{"skip":"","sequence":0,"nll":""}\n', 'line 2 is damaged'],
        ['values for another length', '{"skip":"","sequence":0,"nll":"AAAAAAAAAAA="}\n', 'line 3 is damaged']
    ])('with %s in a complete line is refused', async (_, line, says) => {
        fs.writeFileSync(
            file,
            `${JSON.stringify({ journal: 1, inputs })}\n${line}{"skip":"","sequence":1,"nll":"AAAAAA=="}\n`
        );
        await expect(searchWith('race', true)).rejects.toThrow(
            `can't read the journal ${file}: ${says}; begin anew with \`resume: false\``
        );
    });
});
