// Of how many threads graphs are computed while other programs use the cores; thread_choice.cpp makes up how much of
// them is free.
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { tools } from '../models';

/** The threads of each run of 10 ms. */
const threads = (most: number, ...cores: string[]) =>
    execFileSync(path.join(tools, 'thread-choice'), [String(most), ...cores], { encoding: 'utf8' })
        .trim()
        .split('\n')
        .map(Number);
const share = (runs: number[], of: number) => runs.filter((count) => count === of).length / runs.length;

test('all are used where all get a core', () => {
    expect(share(threads(2, '2:10'), 2)).toBe(1);
    expect(share(threads(16, '15.8:10'), 16)).toBe(1); // measuring error
});

test.each([
    [2, 1.5, 1],
    [2, 0.6, 1],
    [16, 15.5, 15],
    [16, 9, 9]
])('of %d, with %f cores free, %d are used but for trials', (most, free, used) => {
    const runs = threads(most, `${free}:20`);
    expect(runs.slice(0, 5)).toEqual(Array(5).fill(most)); // it must show first
    expect(share(runs, used)).toBeGreaterThan(0.9);
    expect(share(runs.slice(100), most)).toBeGreaterThan(0); // it may be over
});

test('all are used again soon after the others have ended', () => {
    const runs = threads(2, '1:10', '2:10');
    expect(share(runs.slice(0, 1000), 1)).toBeGreaterThan(0.9);
    expect(share(runs.slice(1110), 2)).toBe(1);
});

test('one thread stays one', () => {
    expect(share(threads(1, '0.2:5'), 1)).toBe(1);
});
