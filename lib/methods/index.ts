// The list of methods. Adding one takes a file here and its place in this list.
import { BlockprunerError } from '../errors.js';
import { balanced } from './balanced.js';
import { blockInfluenceMethod } from './block-influence.js';
import { blockpruner } from './blockpruner.js';
import { laco, lacoCode } from './laco.js';
import type { Candidates, MethodOptions, PruningMethod, StepwiseMethod } from './method.js';
import { random } from './random.js';
import { relativeMagnitude } from './relative-magnitude.js';
import { shortgpt } from './shortgpt.js';
import { sleb } from './sleb.js';

const all = [
    balanced,
    blockpruner,
    sleb,
    shortgpt,
    laco,
    lacoCode,
    relativeMagnitude,
    blockInfluenceMethod,
    random
] as const satisfies PruningMethod[];

/** The name of a method; each says in its own file what it does and where it comes from. */
export type Method = (typeof all)[number]['name'];

/** The names of all methods. */
export const methods: readonly Method[] = all.map(({ name }) => name);

/** @throws BlockprunerError if there is no method of this name */
export function methodOf(name: string): PruningMethod<Method> {
    return find(all, name);
}

/** The methods that remove move after move. */
export type GreedyMethod = Extract<(typeof all)[number], StepwiseMethod>['name'];

/**
 * Gives what a method that removes move after move lets go next. A method that ranks once has a single candidate, the
 * lowest of those that are possible.
 * @throws BlockprunerError if there is no such method, or one of whole layers is to remove blocks of one kind
 */
export async function movesOf(name: GreedyMethod, options: MethodOptions): Promise<Candidates> {
    const stepwise = all.filter((method) => 'candidates' in method);
    return find(stepwise, name).candidates(options);
}

function find<T extends PruningMethod>(list: readonly T[], name: string): T {
    const found = list.find((method) => method.name === name);
    if (!found) {
        const message = `there is no method '${name}': there are ${list.map((method) => method.name).join(', ')}`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    return found;
}
