import { median } from 'simple-statistics';
import type { BlockInfo } from '../runtime/model.js';
import type { Block } from '../runtime/blocks.js';
import type { MethodContext } from './method.js';

const ROUNDS = 5;

/**
 * How many milliseconds each block takes on the device, for a sequence of the calibration: the time with all blocks
 * less that without those of the same kind and size, shared among them; the median of some rounds, since other programs
 * run too.
 * @param together how many sequences are computed at once
 */
export async function measureTimes(
    { model, blocks, calibration, signal }: MethodContext,
    together: number
): Promise<number[]> {
    const { length } = calibration;
    const some = { ...calibration, tokens: calibration.tokens.subarray(0, length * together) };
    const pass = async (skip: readonly Block[]) => {
        const started = performance.now();
        await model.evaluate(some, { skip, signal });
        return ((performance.now() - started) * length) / some.tokens.length;
    };
    const alike = new Map<string, BlockInfo[]>();
    for (const block of blocks) {
        const name = `${block.kind} ${block.parameters} ${block.bytes}`;
        alike.set(name, [...(alike.get(name) ?? []), block]);
    }
    const times = new Map<BlockInfo, number>();
    await pass([]); // the first pass allocates
    for (const group of alike.values()) {
        const rounds: number[] = [];
        for (let round = 0; round < ROUNDS; round++) {
            const all = await pass([]);
            rounds.push((all - (await pass(group))) / group.length);
        }
        group.forEach((block) => times.set(block, Math.max(median(rounds), 1e-6)));
    }
    return blocks.map((block) => times.get(block)!);
}
